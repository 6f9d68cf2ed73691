"""What the test suite itself says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_missing_clips_are_one_line_and_other_skips_stay_visible(tmp_path):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_clips(shared, n): ...\n"
        "def test_other(): pytest.skip('for another reason')\n"
    )
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "-c", "/dev/null", "."]
    environment = os.environ | {"KDCACHE_SHARED": str(tmp_path / "absent")}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in lines if "real clips" in line and not line.startswith("=")] == [
        f"3 tests need real clips, not found at {tmp_path / 'absent' / 'data'}; set KDCACHE_SHARED to the folder that "
        "holds them."
    ]
    assert sum(line.startswith("SKIPPED") for line in lines) == 1
    assert "for another reason" in done.stdout
    assert "1 skipped, 3 need real clips" in lines[-1]
