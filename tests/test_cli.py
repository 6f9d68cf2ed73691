"""The command line: help, errors as one sentence, exit statuses, and every command end to end on a tiny data set."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import kdcache
from kdcache import datasets
from kdcache.cli import main
from kdcache.cli.printing import write_text
from kdcache.cli.standard_streams import open_standard_streams
from kdcache.demo.scene import make_dataset
from kdcache.errors import OptionError, WriteError
from kdcache.files import atomic
from kdcache.log import _BesideBars
from kdcache.progress import progress

STREAM = "i3d-rgb/mixed4a"
SMALL = ["--layer", "mixed4a", "--size", "32", "--frames", "8", "--weights", "random:0"]
HEAVY = {"torch", "cv2", "pandas", "numba", "av", "numpy", "h5py", "decord"}


def kd(*arguments: object) -> Result:
    """Run a command; anything but an orderly exit is raised."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def refused(*arguments: object) -> str:
    """The message of a command that must end with status 1."""
    result = kd(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    return result.stderr.removeprefix("Error: ")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = [(path, group)]
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [((*path, name), command)]
    return found


COMMANDS = commands(main)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Six videos, twelve clips, two labels; the last two videos are held out."""
    folder = tmp_path_factory.mktemp("cli") / "set"
    rows = make_dataset(folder, clips_per_class=1)
    rows["label"] %= 2
    rows["split"] = np.where(np.arange(12) < 8, "train", "validation")
    kdcache.write_manifest(rows, folder / "clips.csv")
    return folder


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> Path:
    """A cache of them, made by the command."""
    out = tmp_path_factory.mktemp("cache") / "out"
    result = kd("extract", "--manifest", root / "clips.csv", "--root", root, "--out", out, *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "12 clips: 0 cached already, 12 extracted into 1 shards.\n"
    return out


@pytest.fixture
def cache(made, tmp_path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))


# ---------------------------------------------------------------------------
# help
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(p) or "kdcache" for p, _ in COMMANDS])
def test_every_command_has_help_with_examples_that_it_understands(path, command):
    short, long = kd(*path, "-h"), kd(*path, "--help")
    assert (short.exit_code, short.output) == (0, long.output)
    assert "Example:" in long.output
    assert max(map(len, long.output.splitlines())) <= 100
    lines = [line.strip() for line in long.output.partition("Example:")[2].splitlines()]
    examples = [line for line in lines if line.startswith("kdcache")]
    assert examples
    for example in examples:
        words = example.split()[1:]
        named = next(c for p, c in sorted(COMMANDS, key=lambda x: -len(x[0])) if tuple(words[: len(p)]) == p)
        assert named is not main
        options = {o for p in named.params for o in (*p.opts, *p.secondary_opts)}
        assert {w for w in words if re.match(r"--?[a-z]", w)} <= options, example


def test_version():
    assert kd("--version").output == f"kdcache, version {kdcache.__version__}\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom kdcache.cli import main\n"
        "for a in ([], ['extract'], ['train'], ['weights', 'list'], ['idt']):\n"
        "    main([*a, '--help'], standalone_mode=False)\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "heavy: []"


# ---------------------------------------------------------------------------
# what is refused
# ---------------------------------------------------------------------------


def test_extract_without_a_root_says_what_to_give(root, monkeypatch):
    monkeypatch.delenv("KDCACHE_DATA", raising=False)
    message = refused("extract", "--dataset", "epic", "--layer", "mixed4a")
    assert message.startswith("Say where epic lies: --root FOLDER, or set KDCACHE_DATA. Expected layout:\n")
    assert "EPIC_train_action_labels.csv" in message
    assert "--root FOLDER" in refused("extract", "--manifest", root / "clips.csv")
    assert "--manifest clips.csv or --dataset" in refused("extract")
    assert "--root FOLDER" in refused("manifest", "folder", "-o", "clips.csv")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfes\0", b'source\n"a', b'source\n"' + b"x" * 200_000])
def test_a_manifest_that_is_no_table_is_named_before_its_columns_are_missed(root, tmp_path, monkeypatch, content):
    monkeypatch.delenv("KDCACHE_DATA", raising=False)
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    assert refused("extract", "--manifest", path, "--root", root, "--for", "anticipation").startswith(f"{path}: ")
    assert refused("extract", "--manifest", path, "--stream", "rgb").startswith(f"{path}: ")


def test_the_root_may_come_from_the_environment(root, made, monkeypatch):
    monkeypatch.setenv("KDCACHE_DATA", str(root))
    result = kd("extract", "--manifest", root / "clips.csv", "--out", made, *SMALL)
    assert (result.exit_code, result.stdout) == (0, "12 clips: 12 cached already, 0 extracted.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extract", "--manifest", "CSV", "--root", "ROOT", "--layer", "mixed4"], r"'mixed4'.*'mixed4[a-f]'"),
        (["extract", "--manifest", "CSV", "--root", "ROOT", "--stream", "flwo"], r"did you mean 'flow'\?"),
        (
            ["extract", "--manifest", "CSV", "--root", "ROOT", "--backbone", "i3drgb", "--layer", "mixed4a"],
            r"did you mean 'i3d-rgb/…'",
        ),
        (["extract", "--dataset", "epik", "--root", "ROOT"], r"did you mean 'epic'\?"),
        (["extract", "--dataset", "folder", "--root", "ROOT", "--set", "obsrve=0.4"], r"did you mean 'observe'\?"),
        (["extract", "--dataset", "folder", "--root", "ROOT", "--set", "observe"], "--set key=value"),
        (["extract", "--manifest", "CSV", "--root", "ROOT", "--set", "tau=1"], "--set belongs to --dataset"),
        (["extract", "--manifest", "CSV", "--root", "ROOT", "--part", "x"], "--part x: write I/N"),
        (["extract", "--manifest", "CSV", "--root", "ROOT/none"], "none: the data root is not a folder"),
        (["extract", "--manifest", "CSV", "--root", "ROOT", "--weights", "ROOT/no.pt"], r"no\.pt"),
        (["datasets", "ucf"], r"did you mean 'ucf101'\?"),
        (["weights", "path", "i3d-rbg"], r"did you mean 'i3d-rgb'\?"),
        (["train", "anticipaton", "--shards", "CACHE"], r"did you mean 'anticipation'\?"),
        (["train", "anticipation", "--shards", "CACHE", "--set", "epoch=1"], r"did you mean 'epochs'\?"),
        (["train", "anticipation", "--shards", "CACHE", "--set", "loss_d=bth"], r"did you mean 'both'\?"),
        (["train", "anticipation", "--shards", "ROOT/none"], r"none"),
        (["evaluate", "ROOT"], "is no run"),
        (["inspect", "ROOT"], "no shards here"),
        (["show", "CACHE", "lift-00"], "no clip 'lift-00'"),
    ],
)
def test_wrong_names_are_refused_in_one_sentence(root, made, tmp_path, arguments, words):
    places = {"CSV": str(root / "clips.csv"), "ROOT": str(root), "CACHE": str(made)}
    given = [re.sub("^(CSV|ROOT|CACHE)", lambda m: places[m[0]], a) for a in arguments]
    before = sorted(made.iterdir())
    message = refused(*given, *(["--out", tmp_path / "out"] if arguments[0] in ("extract", "train") else []))
    assert re.search(words, message)
    assert message.count("\n") == 1
    assert not list(tmp_path.rglob("*"))
    assert sorted(made.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, where nothing can be made")
def test_a_place_that_cannot_be_written_is_named(root):
    assert refused("manifest", "folder", "--root", root, "-o", "/proc/x/clips.csv").startswith("/proc/x: ")


# ---------------------------------------------------------------------------
# extract
# ---------------------------------------------------------------------------


def test_a_dry_run_tells_and_writes_nothing(root, tmp_path):
    result = kd(
        "extract", "--manifest", root / "clips.csv", "--root", root, "--out", tmp_path / "o", *SMALL, "--dry-run"
    )
    assert result.exit_code == 0
    assert re.search(r"12 to extract from 6 sources: about 0 MB and 0:00:\d\d .* Nothing was written\.", result.stdout)
    assert not list(tmp_path.iterdir())


def test_status_3_says_that_some_clips_failed(root, tmp_path):
    folder, out = tmp_path / "set", tmp_path / "out"
    (folder / "videos").mkdir(parents=True)
    shutil.copy(root / "videos/lift-00.mp4", folder / "videos/good.mp4")
    (folder / "videos/bad.mp4").write_bytes(b"not a video")
    (folder / "clips.csv").write_text("clip_id,source,start_s,stop_s\na,videos/good.mp4,0,1\nb,videos/bad.mp4,0,1\n")
    call = ["extract", "--manifest", folder / "clips.csv", "--root", folder, "--out", out, *SMALL]
    assert kd(*call, "--dry-run").exit_code == 0
    first = kd(*call)
    assert first.exit_code == 3
    assert "1 extracted into 1 shards, 1 failed (see " in first.stdout
    failures = pd.read_csv(out / "failures.csv")
    assert failures["clip_id"].tolist() == ["b"]
    assert "bad.mp4" in failures["reason"][0]
    assert kd(*call).exit_code == 3
    assert "bad.mp4" in kd("inspect", out).stdout
    shutil.copy(root / "videos/lower-00.mp4", folder / "videos/bad.mp4")
    assert kd(*call, "--retry-failed").exit_code == 0
    assert not (out / "failures.csv").exists()


def test_a_folder_of_class_folders_needs_no_manifest(root, tmp_path):
    for source, name in (("lift-00", "lift/a"), ("lower-00", "lower/b")):
        path = tmp_path / "set" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / f"videos/{source}.mp4", path)
    of_set = ["--root", tmp_path / "set", "--set", "observe=0.4"]
    result = kd("manifest", "folder", *of_set, "-o", tmp_path / "clips.csv")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'clips.csv'}: 4 clips of 2 sources\n")
    for way in (["--dataset", "folder", *of_set], ["--manifest", tmp_path / "clips.csv", "--root", tmp_path / "set"]):
        result = kd("extract", *way, "--out", tmp_path / "out", *SMALL)
        assert result.exit_code == 0
    assert result.stdout == "4 clips: 4 cached already, 0 extracted.\n"
    clips = kdcache.Cache(tmp_path / "out").clips
    assert clips["label"].tolist() == [0, 0, 1, 1]
    assert sorted(clips["role"]) == ["action", "action", "observed", "observed"]


# ---------------------------------------------------------------------------
# a cache and what becomes of it
# ---------------------------------------------------------------------------


def test_inspect_says_what_is_there(made):
    for path in (made, next(made.glob("shard-*.h5"))):
        result = kd("inspect", path)
        assert result.exit_code == 0
        assert re.search(rf"{STREAM} +12 +VCTHW +1 × 480 × \d × \d × \d +float16", result.stdout)
        assert "random:0" in result.stdout


def test_verify_repair_and_extract_redo_just_what_was_damaged(root, cache):
    assert kd("verify", cache).exit_code == 0
    clip, other = "lift-00-action", "lower-00-action"
    held = kdcache.Cache(cache)
    before = {c: held.read(STREAM, [c])[0] for c in (clip, other)}
    shard = next(cache.glob("shard-*.h5"))
    content = bytearray(shard.read_bytes())
    content[content.find(before[clip].tobytes()) + 100] ^= 1
    shard.write_bytes(content)
    found = kd("verify", cache)
    assert found.exit_code == 1
    assert re.findall(r"of clip '([^']+)'", found.stdout) == [clip]
    repaired = kd("verify", cache, "--repair")
    assert repaired.exit_code == 0
    again = kd("extract", "--manifest", root / "clips.csv", "--root", root, "--out", cache, *SMALL)
    assert (again.exit_code, again.stdout) == (0, "12 clips: 11 cached already, 1 extracted into 1 shards.\n")
    assert kd("verify", cache).exit_code == 0
    held = kdcache.Cache(cache)
    assert all((held.read(STREAM, [c])[0] == array).all() for c, array in before.items())


def test_reindex_rebuilds_the_index_from_the_shards(cache):
    before = pd.read_csv(cache / "manifest.csv").set_index("clip_id").sort_index()
    (cache / "manifest.csv").unlink()
    result = kd("reindex", cache)
    assert (result.exit_code, result.stdout) == (0, f"{cache / 'manifest.csv'}: 12 clips\n")
    after = pd.read_csv(cache / "manifest.csv").set_index("clip_id").sort_index()
    pd.testing.assert_frame_equal(after[before.columns], before)


def test_show_draws_a_picture(made, tmp_path):
    target = tmp_path / "sheet.png"
    result = kd("show", made, "lift-00-action", "-o", target)
    assert (result.exit_code, result.stdout) == (0, f"{target}\n")
    with Image.open(target) as picture:
        assert picture.width > 1000
        assert picture.height > 200


def test_check_names_damaged_videos(root, tmp_path):
    good, bad = root / "videos/lift-00.mp4", tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:2000])
    result = kd("check", good, bad)
    assert result.exit_code == 3
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{good}: 160×120, 3.20 s, h264")
    assert first.endswith(": whole")
    assert "bad.mp4" in second
    assert kd("check", good).exit_code == 0


def test_datasets_lists_explains_and_looks(tmp_path):
    listed = kd("datasets")
    assert listed.exit_code == 0
    assert {line.split()[0] for line in listed.stdout.splitlines()} >= {"epic", "ucf101", "folder"}
    explained = kd("datasets", "folder").stdout
    assert "observe=0.0" in explained
    assert "e.g. 0.4: the first 40 % of each clip's frames are observed" in " ".join(explained.split())
    assert "<class>/<video>" in explained
    assert kd("datasets", "--root", tmp_path).exit_code == 0


@pytest.mark.parametrize("command", [["manifest", "folder"], ["extract", "--dataset", "folder"]])
def test_help_says_what_each_option_of_a_dataset_does(command):
    said = " ".join(kd(*command, "--help").stdout.split())
    assert "frame rate of folders of pictures, which count as clips only when it is given. (a number)" in said


def test_every_option_of_every_dataset_is_explained():
    for name in datasets.names():
        assert [one.name for one in datasets.description(name).options if not one.text] == [], name


@pytest.mark.parametrize(
    "command",
    [["extract", "--dataset", "folder"], ["train", "early"], ["export", "npy", ".", "--stream", "s"], ["demo"]],
)
@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("-", "- is standard output, and this is a folder"),
        ("", "it is empty; name a folder"),  # of a shell's variable that is not set
        ("file", "'file' is a file"),
    ],
)
def test_a_folder_to_write_is_a_folder(command, out, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = kd(*command, "-o", out)
    assert result.exit_code == 2
    assert why in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_a_program_without_standard_streams_has_some_that_lead_nowhere(closed, tmp_path):
    """A file that is opened next must not take their numbers, into which C libraries print."""
    child = os.fork()
    if not child:
        try:
            for number in closed:
                os.close(number)
                setattr(sys, ("stdin", "stdout", "stderr")[number], None)
            open_standard_streams()
            assert os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR) > 2
            assert all(os.get_inheritable(number) for number in closed)
            print("out", flush=True)
            print("error", file=sys.stderr, flush=True)
            assert 0 not in closed or sys.stdin.read() == ""
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_report_goes_into_a_pipe_that_stays_one(tmp_path):
    """And ``-o /dev/stdout`` goes there; a file in their place would be what all programs of the machine find."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text("a report", str(pipe))
    assert os.read(reader, 100) == b"a report\n"
    assert pipe.is_fifo()
    os.close(reader)


def test_no_file_takes_the_place_of_a_device(tmp_path, monkeypatch):
    path = tmp_path / "device"
    path.write_text("what it is")
    monkeypatch.setattr("kdcache.files.stat.S_ISCHR", lambda mode: True)
    with pytest.raises(WriteError, match=r"device cannot be written \(it is a device\): name a file"), atomic(path):
        pass
    assert path.read_text() == "what it is"
    assert list(tmp_path.iterdir()) == [path]


def test_without_standard_error_nothing_is_shown_and_all_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    with progress("work", 3, "clips") as bar:
        bar.update(3)
    handler = _BesideBars()
    handler.emit(logging.makeLogRecord({"msg": "a line"}))
    assert capsys.readouterr().out == ""


def test_a_cache_is_not_copied_to_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, target in (("", "x"), ("x", "")):
        result = kd("copy", source, target)
        assert result.exit_code == 1
        assert "The name of a place is empty" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_python_says_that_a_file_is_no_folder_too(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "clips.csv").write_text("source\nv.mp4\n")
    with pytest.raises(OptionError, match="file is no folder, which a cache is"):
        kdcache.extract(tmp_path / "clips.csv", root=tmp_path, out=tmp_path / "file", streams=["rgb"])
    with pytest.raises(OptionError, match="file is no folder, which a run is"):
        kdcache.train("early", tmp_path, out=tmp_path / "file")


def test_weights_are_listed():
    result = kd("weights", "list")
    assert result.exit_code == 0
    assert re.search(r"^i3d-rgb  \(i3d-rgb, ", result.stdout, re.MULTILINE)


def test_train_and_evaluate(made, tmp_path):
    run = tmp_path / "run"
    options = ["--set", "head=light", "--set", "epochs=1", "--set", "batch_size=4"]
    trained = kd("train", "anticipation", "--shards", made, "--out", run, "--device", "cpu", *options)
    assert trained.exit_code == 0
    assert re.match(rf"{run}\n  weights +split +target +top1 .*\n  last +validation  label +[0-9.]+ ", trained.stdout)
    judged = kd("evaluate", run)
    assert judged.exit_code == 0
    assert '"top1"' in judged.stdout
    assert "did you mean 'validation'" in refused("evaluate", run, "--split", "validaton")


def test_ctrl_c_ends_with_the_status_of_a_stop(monkeypatch, tmp_path):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdcache.store.describe", interrupted)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert (result.exit_code, result.output.strip()) == (143, "Stopped.")


def test_inspect_shows_the_axes_of_each_stream(tmp_path):
    import clips_cache

    result = CliRunner().invoke(main, ["inspect", str(clips_cache.cache(tmp_path / "cache", train=3))])
    header, line = result.output.splitlines()[2:4]
    assert header.split()[2] == "axes"
    assert line.split()[2] == "VND"
