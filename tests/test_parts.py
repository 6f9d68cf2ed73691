"""Eight parts that write one cache at the same time, as a job array does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_videos import pictures, write

import kdcache
from kdcache.store import load_index, verify
from kdcache.store.failures import load_failures

PARTS = 8
SCRIPT = Path(__file__).parents[1] / "examples/slurm_extract.sh"
PROGRAM = """
import os, sys
import kdcache
from kdcache.extraction import run  # loads torch before processes are forked
import torch
manifest, root, out, parts = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
wait, go = os.pipe()
children = []
for part in range(1, parts + 1):
    if (child := os.fork()) == 0:
        os.close(go)
        os.read(wait, 1)  # all begin at once
        try:
            kdcache.extract(manifest, root=root, out=out, streams=["rgb"], part=(part, parts), bar=False)
        except BaseException as error:
            print(part, repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(child)
os.close(go)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sources a part, one of them broken."""
    root = tmp_path_factory.mktemp("videos")
    lines = ["source,label"]
    for number in range(4 * PARTS):
        if number % 4 == 3:
            (root / f"{number:02d}.mp4").write_bytes(b"no video" + bytes([number]))
        else:
            write(root / f"{number:02d}.mp4", pictures(3, 32, 32, seed=number))
        lines.append(f"{number:02d}.mp4,{number % 2}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_eight_parts_at_once_lose_no_row(videos, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    call = [sys.executable, "-c", PROGRAM, videos / "clips.csv", videos, out, PARTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, call)], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = kdcache.extract(videos / "clips.csv", root=videos, out=alone, streams=["rgb"], bar=False)
    assert (report.extracted, len(report.failures)) == (3 * PARTS, PARTS)
    columns = ["clip_id", "rgb:key", "rgb:digest"]
    one, all_parts = (load_index(each)[columns].sort_values("clip_id", ignore_index=True) for each in (alone, out))
    assert all_parts.equals(one)
    assert sorted(load_failures(out)) == sorted(load_failures(alone))
    assert sorted((out / "sources.csv").read_text().split()) == sorted((alone / "sources.csv").read_text().split())
    assert len(list(out.glob("shard-*.h5"))) == PARTS
    assert verify(out, progress=False).ok
    assert kdcache.extract(videos / "clips.csv", root=videos, out=out, streams=["rgb"], bar=False).cached == 3 * PARTS


@pytest.mark.parametrize("slurm", [{"SLURM_ARRAY_TASK_COUNT": "8"}, {"SLURM_ARRAY_TASK_COUNT": "1", "PARTS": "8"}])
def test_the_job_array_calls_extract_with_its_part(tmp_path, slurm):
    """The script with a program in place of ``kdcache`` that says how it was called; one task alone submitted again."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kdcache").write_text('#!/bin/sh\necho "$@"; echo "extract: 1/2 clips" >&2; exit 3\n')
    (tmp_path / "bin/kdcache").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "3",
        "TMPDIR": str(tmp_path),
        **slurm,
    }
    call = ["bash", str(SCRIPT), "clips.csv", "s3://bucket/videos", str(tmp_path / "cache"), "--stream", "rgb"]
    assert subprocess.run(call, env=environment, check=False).returncode == 3
    logs = tmp_path / "cache.logs"
    assert (logs / "part-3.json").read_text().split() == [
        *("extract", "--manifest", "clips.csv", "--root", "s3://bucket/videos", "--out", str(tmp_path / "cache")),
        *("--part", "3/8", "--source-cache", str(tmp_path / "kdcache-sources"), "--json", "--stream", "rgb"),
    ]
    log = (logs / "part-3.log").read_text().splitlines()
    assert log[0].startswith("part 3 of 8 on ")
    assert log[1] == "extract: 1/2 clips"


def test_the_job_array_is_signalled_and_says_why_it_did_not_begin(tmp_path):
    """Slurm signals steps alone, of which the script has none, unless told ``B:``; its own output is kept."""
    directives = {line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")}
    assert "--signal=B:TERM@120" in directives
    assert not any(each.endswith("/dev/null") for each in directives)
    done = subprocess.run(["bash", str(SCRIPT), "clips.csv"], capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode
    assert done.stderr
