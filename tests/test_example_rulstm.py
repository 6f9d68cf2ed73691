"""``examples/rulstm_vectors.py`` on RULSTM's lists: drawn vectors, import, training, the challenge's numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdcache.runs.run import Run
from kdcache.store import Cache

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "rulstm_vectors.py"


def test_vectors_to_numbers(shared, tmp_path):
    lists = shared / "data" / "annotations"
    arguments = [lists / "rulstm" / "ek55", lists / "epic55", "--work", tmp_path / "work"]
    done = subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    curve = [float(x) for x in re.findall(r"label +([\d.]+)", done.stdout)]
    assert len(curve) == 8
    assert curve[-1] > curve[0]  # it sees more and more
    numbers = dict(re.findall(r"^(\w+): ([\d.]+)$", done.stdout, re.MULTILINE))
    assert list(numbers) == [
        f"{t}_{m}" for t in ("verb", "noun", "action") for m in ("top1", "top5", "precision", "recall")
    ]
    run, cache = Run(tmp_path / "work" / "run"), Cache(tmp_path / "work" / "cache")
    assert cache.shape("rulstm/rgb") == (1, 14, 32)
    verb = run.metrics["best@validation"]["validation"]["verb"]
    assert float(numbers["verb_top5"]) == pytest.approx(verb["top5@1"], abs=0.06)
