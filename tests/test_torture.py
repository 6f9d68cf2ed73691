"""The harness of the long proof (``benchmarks/torture``) works: it sees silence, hangs, deaths and torn files."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from kdcache.errors import StoreError  # noqa: E402
from kdcache.store import Cache, verify  # noqa: E402
from torture import bits, isolation, strange_shards, texts  # noqa: E402
from torture.cases import FAILED, SILENT, SURVIVED, Outcome, Progress, Table, generator, line  # noqa: E402
from torture.command import CLASSES, markdown  # noqa: E402
from torture.damage import damaged  # noqa: E402
from torture.materials import FEATURE, PICTURES, all_layouts  # noqa: E402

forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    all_layouts(folder / "out", clips=2)
    return folder


def unchecked(folder: Path) -> dict[str, str]:
    """A reader without any check."""
    found = {}
    for path in sorted((folder / "out").glob("shard-*.h5")):
        with h5py.File(path) as file:
            found[path.name] = file[FEATURE][()].tobytes().hex()
    return found


def strict(folder: Path) -> dict[str, str]:
    raise StoreError("shard-00000.h5 is not what was written.")


def broken(folder: Path) -> dict[str, str]:
    raise KeyError("flow")


def test_what_is_served_without_a_word_counts_as_silent(layouts, tmp_path):
    shutil.copytree(layouts, tmp_path, dirs_exist_ok=True)
    expected = unchecked(tmp_path)
    shard = tmp_path / "out" / "shard-00000.h5"
    with h5py.File(shard) as file:
        at = file[FEATURE].id.get_offset()

    def judged(read, verified):
        return bits.judged(bits.Target(1, all_layouts, read, verified=verified), tmp_path, expected)

    assert judged(unchecked, True) == (SURVIVED, "unused: all reads equal")
    assert judged(strict, True)[0] == FAILED  # a reader refuses what verify finds whole
    data = bytearray(shard.read_bytes())
    data[at + 3] ^= 1
    shard.write_bytes(data)
    assert not verify(tmp_path / "out").ok
    assert judged(unchecked, False) == (SILENT, "1 other values served, among them shard-00000.h5")
    assert judged(unchecked, True)[0] == SILENT  # though verify would have named it
    assert judged(strict, True) == (SURVIVED, "named")
    verdict, how = judged(broken, True)
    assert (verdict, how.split(" (")[0]) == (FAILED, "traceback: KeyError: 'flow'")


def test_damage_is_damage_and_is_the_same_each_time():
    whole = bytes(range(256)) * 40
    made = [damaged(whole, generator("bits", 0, number)) for number in range(200)]
    assert made == [damaged(whole, generator("bits", 0, number)) for number in range(200)]
    assert all(data != whole for _, data in made)
    assert {kind for kind, _ in made} == {"bit", "byte", "zeros", "cut"}
    assert damaged(whole, generator("bits", 1, 0)) != made[0]
    one = next(data for kind, data in made if kind == "bit")
    assert sum((a ^ b).bit_count() for a, b in zip(whole, one, strict=True)) == 1


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path):
    first = Progress("bits", 5, 7, tmp_path)
    for number in (0, 3):
        first.add(Outcome(number, "flip", SURVIVED, "named", 0.5))
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write('[7, {"number": 4, "ki')  # killed in the middle of a line
    assert Progress("bits", 5, 7, tmp_path).missing() == [1, 2, 4]
    assert Progress("bits", 5, 8, tmp_path).missing() == [0, 1, 2, 3, 4]
    assert Progress("bits", 2, 7, tmp_path).table.tried == 1


def hopeless(number: int) -> Outcome:
    isolation.announce(f"kind {number}")
    if number == 1:
        time.sleep(20)
    if number == 2:
        faulthandler.disable()  # pytest's would print its trace of a death that is wanted
        os.abort()
    if number == 3:
        os._exit(0)
    return Outcome(number, "kind", SURVIVED)


class TestIsolation:
    pytestmark = forks

    def test_hangs_and_deaths_cost_one_case_each(self, tmp_path):
        limits = isolation.Limits(seconds=0.3, cases=4)
        table = isolation.run_cases("hostile", 5, 0, 60, tmp_path, hopeless, limits)
        outcomes = {outcome.number: outcome for outcome in table.outcomes}
        assert [outcomes[number].verdict for number in range(5)] == [SURVIVED, FAILED, FAILED, FAILED, SURVIVED]
        assert "hangs" in outcomes[1].how
        assert "status -6" in outcomes[2].how
        assert "status 0" in outcomes[3].how  # an end without an answer is none either
        assert outcomes[2].kind == "kind 2"

    def test_a_case_that_takes_too_much_memory_is_ended(self):
        def greedy() -> Outcome:
            held = bytearray(100 << 20)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(60)
            return Outcome(0, "kind", SURVIVED)

        outcome = isolation.alone(greedy, isolation.Limits(seconds=60, memory=50 << 20))
        assert (outcome.verdict, outcome.how.split(" GB")[-1]) == (FAILED, ": killed")
        assert outcome.peak > 60 << 20

    def test_a_mistake_of_the_harness_is_no_outcome(self, tmp_path):
        def mistaken(number: int) -> Outcome:
            raise NameError("oops")

        with pytest.raises(RuntimeError, match="NameError: oops"):
            isolation.run_cases("bits", 2, 0, 60, tmp_path, mistaken)
        assert Progress("bits", 2, 0, tmp_path).missing() == [0, 1]


KILLED = """
import os, signal, sys
sys.path.append(sys.argv[1])
from torture import faults
faults.preload()
import ctypes, pathlib
from kdcache.files import atomic
library, folder = ctypes.CDLL(None), pathlib.Path(sys.argv[2])
library.torture_calls.restype = ctypes.c_long
old, new = b"old" * 9999, b"new" * 9999

def careful(path):
    with atomic(path) as temporary:
        temporary.write_bytes(new)

def careless(path):
    path.write_bytes(new)

def disturbed(write, call, action):
    # how the process ended, and what the file holds then
    path = folder / "file"
    path.write_bytes(old)
    library.torture_arm(os.fsencode(folder), ctypes.c_long(call), action, 28, 0)
    pid = os.fork()
    if not pid:
        try:
            write(path)
        except OSError:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    library.torture_arm(b"", ctypes.c_long(-1), 0, 0, 0)
    content = path.read_bytes()
    return status, "old" if content == old else "new" if content == new else "torn"

for write in (careful, careless):
    disturbed(write, -1, faults.NOTHING)
    calls = library.torture_calls()
    kinds = [*faults.KILLS.values(), faults.FULL]
    print(write.__name__, calls, sorted({disturbed(write, k, a) for k in range(1, calls + 1) for a in kinds}))
    print(sorted({p.suffix for p in folder.iterdir()}))
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs Linux and a C compiler")
def test_faults_at_every_system_call_find_what_is_not_atomic(tmp_path):
    run = [sys.executable, "-c", KILLED, str(BENCHMARKS), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=BENCHMARKS.parent, check=False)
    assert done.returncode == 0, done.stderr
    careful, _, careless, _ = done.stdout.splitlines()
    assert int(careful.split()[1]) >= 5  # created, written, flushed, renamed, the folder flushed
    assert "'old'" in careful
    assert "'new'" in careful
    assert "(-9, " in careful
    assert "(1, 'old')" in careful  # a full disk
    assert "torn" not in careful
    assert "(-9, 'torn')" in careless


def test_a_strangers_shard_has_digests_that_are_right(layouts, tmp_path):
    shutil.copytree(layouts, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "out" / "shard-00000.h5"
    with h5py.File(path, "r+") as file:
        strange_shards.reseal(file)
    assert verify(tmp_path / "out").ok
    with h5py.File(path, "r+") as file:
        frames = file[f"frames/{PICTURES}"][()] + 1
        strange_shards.replace(file, f"frames/{PICTURES}", frames)
        strange_shards.reseal(file)
    (found,) = Cache(tmp_path / "out").frames(PICTURES, Cache(tmp_path / "out").clips["clip_id"].tolist()[:1])
    assert found.tolist() == frames[0].tolist()  # a lie that is well made is believed: digests have no key


@pytest.mark.parametrize("craft", strange_shards.CRAFTS)
def test_every_craft_changes_a_shard(layouts, tmp_path, craft, monkeypatch):
    shutil.copytree(layouts, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "out" / "shard-00000.h5"
    before = path.read_bytes()
    monkeypatch.setattr(strange_shards, "CRAFTS", {craft: strange_shards.CRAFTS[craft]})
    strange_shards.spoil_shard(path, generator("hostile", 0, 1))
    assert not path.is_file() or path.is_symlink() or path.read_bytes() != before


@pytest.mark.parametrize(
    ("spoil", "name", "content"),
    [
        (texts.spoil_csv, "clips.csv", "clip_id,source,label\na,a.mp4,0\nb,b.mp4,1\n"),
        (texts.spoil_json, "summary.json", json.dumps({"seal": "x", "epochs": 3, "rows": [{"loss": 0.5}]})),
        (texts.spoil_toml, "config.toml", 'method = "early"\n[options]\nlr = 0.1\n'),
    ],
)
def test_texts_are_spoilt_in_many_ways(tmp_path, spoil, name, content):
    made = set()
    for number in range(60):
        path = tmp_path / name
        path.write_text(content)
        spoil(path, generator("hostile", 0, number))
        made.add(path.read_bytes())
    assert len(made) > 30


def test_tables_count_what_broke_a_promise():
    table = Table("bits", 3, 4)
    table.outcomes = [
        Outcome(0, "bit in shards", SURVIVED, "named", 0.5, 10**6),
        Outcome(1, "bit in shards", SURVIVED, "unused: all reads equal", 2.0, 10**7),
        Outcome(2, "bit in shards", SILENT, "1 other value", 0.1),
        Outcome(3, "cut in state.pt", FAILED, "traceback", 0.1),
    ]
    content = table.to_json()
    assert (content["tried"], content["survived"], content["silent"], content["failed"]) == (4, 2, 1, 1)
    assert content["kinds"]["bit in shards"] == {
        "silent": 1,
        "survived: named": 1,
        "survived: unused: all reads equal": 1,
    }
    assert [outcome["number"] for outcome in content["bad"]] == [2, 3]
    assert "2.0 s" in line("bits", content)
    shown = markdown({"bits": {**content, "commit": "0123456789"}}).splitlines()
    assert shown[2] == "| `bits` | 4 | 2 | 1 | 1 | 2.0 s | 10 MB | 0123456 |"
    assert "bits" in CLASSES
