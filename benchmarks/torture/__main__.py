"""``python -m benchmarks.torture`` or ``python benchmarks/torture``, from the root of a checkout."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]  # this checkout, and ``common``

from torture.command import main  # noqa: E402

if __name__ == "__main__":
    main()
