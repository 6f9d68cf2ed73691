"""``examples/cluster_log.sh``: a job without a terminal says how far it is, line by line, and reports as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from make_videos import pictures, write

SCRIPT = Path(__file__).parents[1] / "examples/cluster_log.sh"
LINE = re.compile(
    r"(\S[^:]*): (\d+)/(\d+) \w+ \(\d+ %\)(, [\d.]+ \w+/(s|min))?, \d+:\d\d:\d\d elapsed(, ETA \d+:\d\d:\d\d)?"
)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    for number in range(6):
        path = folder / "videos" / ("push", "pull")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, pictures(20, 64, 48, seed=number))
    (folder / "videos/push/broken.mp4").write_bytes(b"not a video")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    call = ["bash", str(SCRIPT), folder / "videos", folder / "work", "--weights", "random:0", "--size", "32"]
    done = subprocess.run(
        [*map(str, call), "--levels", "2"],
        env=os.environ | {"KDCACHE_PROGRESS_S": "0.2", "EPOCHS": "15", "PATH": programs},
        capture_output=True,
        text=True,
        check=False,
    )
    log = folder / "work/job.log"
    assert done.returncode == 0, log.read_text() if log.exists() else done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    return folder / "work"


def test_the_log_has_lines_of_progress_with_rate_and_time_left(work):
    log = (work / "job.log").read_text()
    assert "\r" not in log
    found = [match for line in log.splitlines() if (match := LINE.fullmatch(line))]
    assert {"extract"} <= {match[1] for match in found}
    trained = [match for match in found if re.fullmatch(r"(teacher|student) \d+/15", match[1])]
    assert trained
    assert {int(match[3]) for match in trained} == {int(trained[0][3])}  # of the whole stage, not of one epoch
    assert any(match[4] and match[6] for match in found)
    assert "failed: " in log
    assert "broken.mp4" in log


def test_results_are_json(work):
    (extracted,) = json.loads((work / "extract.json").read_text())
    assert (extracted["clips"], extracted["cached"], len(extracted["failures"])) == (7, 0, 1)
    result = json.loads((work / "result.json").read_text())
    assert result["method"] == "early"
    assert set(result["metrics"]["last"]) == {"validation"}
