"""What is alike in all commands: -o, -q, -v, --json, - for standard output, help on what is named, quick refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import click
import clips_cache
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

import kdcache
from kdcache import backbones, datasets, methods
from kdcache.backbones.weights import asked_by, find
from kdcache.cli import main
from kdcache.cli.common import Group
from kdcache.cli.printing import plain
from kdcache.errors import WeightsError
from kdcache.log import logger
from kdcache.methods.declared import option_names
from kdcache.runs import presets

WRITES = {
    "ablate", "check", "cost", "datasets", "demo", "evaluate", "extract", "fit", "idt", "inspect", "manifest",
    "methods", "backbones", "predict", "show", "train", "verify", "list",
}  # fmt: skip
REPORTS = WRITES - {"demo", "idt", "manifest", "show"}


def kd(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def said(*arguments: object) -> str:
    result = kd(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def leaves(group: click.Group) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= leaves(command) if isinstance(command, click.Group) else {name: command}
    return found


COMMANDS = leaves(main)


def spellings(command: click.Command) -> set[str]:
    return {spelling for one in command.params for spelling in one.opts}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return clips_cache.cache(tmp_path_factory.mktemp("alike") / "cache")


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alike") / "run"
    call = ["train", "early", "--shards", cache, "-o", out, "--device", "cpu", "--set", "epochs=1", "--set", "alpha=0"]
    result = kd("-q", *call, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert (told["path"], told["method"], told["seed"]) == (str(out), "early", 0)
    assert told["metrics"]["last"]["test"]["label"]["acc100"] == pytest.approx(
        json.loads((out / "metrics.json").read_text())["last"]["test"]["label"]["acc100"]
    )
    return out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_are_alike(name):
    known = spellings(COMMANDS[name])
    assert {"-q", "--quiet", "-v", "--verbose"} <= known
    assert {"-q", "--quiet", "-v", "--verbose"} <= spellings(main)
    if name in WRITES:
        assert {"-o", "--out"} <= known
    if name in REPORTS:
        assert "--json" in known
    assert "--output" not in kd(*(["weights"] * (name in ("list", "fetch", "path"))), name, "--help").output


def test_a_command_of_a_plain_group_gets_them_too():
    inner = click.Group("import", commands={"npy": click.Command("npy")})
    outer = Group("outer")
    outer.add_command(inner)
    outer.add_command(inner)
    assert [one.opts for one in inner.commands["npy"].params] == [["-q", "--quiet"], ["-v", "--verbose"]]


# ---------------------------------------------------------------------------
# quiet and verbose
# ---------------------------------------------------------------------------


def test_quiet_logs_nothing_and_verbose_what_was_chosen(cache, tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdcache")
    caplog.handler.setLevel(logging.DEBUG)

    def logged(name: str, *options: str) -> tuple[list[str], list[str]]:
        caplog.clear()
        sets = ["--set", "epochs=1", "--set", "alpha=0", "--device", "cpu"]
        first, *last = options or ("",)
        text = said(*[first] * bool(first), "train", "early", "--shards", cache, "-o", tmp_path / name, *sets, *last)
        assert logger.level == logging.INFO
        return caplog.messages, text.splitlines()[1:]

    usual, result = logged("usual")
    assert any("examples: test 12" in message for message in usual)
    assert not any("is read from" in message for message in usual)
    verbose, same = logged("verbose", "-v")
    assert any(message.startswith("x [ND] is read from vacnn/pool") for message in verbose)
    assert {m for m in usual if "examples" in m} <= set(verbose)
    assert same == result
    assert logged("before", "--quiet") == ([], result)
    assert logged("both", "-v", "-q") == ([], result)  # the last one counts


def test_quiet_still_prints_errors(tmp_path):
    result = kd("-q", "inspect", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {tmp_path}: no shards here")


# ---------------------------------------------------------------------------
# reports
# ---------------------------------------------------------------------------


def test_inspect_and_verify_as_json_hold_what_the_text_says(cache, tmp_path):
    told = json.loads(said("inspect", cache, "--json"))
    (stream,) = told["streams"]
    text = said("inspect", cache)
    assert f"{told['shards']} shard(s), {told['clips']} clip(s)" in text
    assert (stream["stream"], stream["axes"]) == (clips_cache.STREAM, "VND")
    assert " × ".join(map(str, stream["shape"])) in text
    assert list(told["recipes"]) == [stream["recipe"]]
    verified = json.loads(said("verify", cache, "--json"))
    assert (verified["ok"], verified["damaged"], verified["shards"]) == (True, [], told["shards"])
    assert said("inspect", cache, "-o", tmp_path / "a.txt") == ""
    assert (tmp_path / "a.txt").read_text() == text


def test_inspect_of_another_file_does_not_advise_repair(tmp_path):
    (tmp_path / "clips.csv").write_text("clip_id,source\n")
    result = kd("inspect", tmp_path / "clips.csv")
    assert result.exit_code == 1
    assert "no shard (not an HDF5 file)" in result.stderr
    assert "--repair" not in result.stderr


def test_evaluate_writes_where_it_is_told(run, tmp_path):
    printed = said("evaluate", run)
    assert said("evaluate", run, "--json") == printed
    assert said("evaluate", run, "-o", tmp_path / "scores.json") == ""
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(printed)


def test_a_comparison_as_json_names_what_was_set(cache, tmp_path):
    out = tmp_path / "ablation"
    call = ["ablate", "early", "modes", "--shards", cache, "-o", out, "--seeds", 1, "--tune", 0, "--device", "cpu"]
    sets = ["--set", "epochs=1", "--set", "hidden=4", "--set", "teacher_hidden=2"]
    told = json.loads(said("-q", *call, *sets, "--only", "RankLSTM", "--only", "Without distillation", "--json"))
    assert {one["row"] for one in told["results"]} == {"Without distillation", "RankLSTM"}
    assert (told["path"], told["failed"]) == (str(out), {})
    report = (out / "table.md").read_text()
    assert "Set for all rows: epochs=1, hidden=4, teacher_hidden=2." in report
    text = said("-q", *call, *sets, "--only", "RankLSTM", "--only", "Without distillation")
    blocks = itertools.groupby(text.splitlines(), lambda line: line.startswith("|"))
    tables = [list(lines) for is_row, lines in blocks if is_row]
    assert len(tables) >= 2
    assert all(len({len(line) for line in lines}) == 1 for lines in tables)
    wrong = kd(*call, "--only", "Rank")
    assert (wrong.exit_code, wrong.stderr) == (1, "Error: Unknown row of modes 'Rank': did you mean 'RankLSTM'?\n")
    assert "name a TABLE" in kd(*call[:2], *call[3:], "--only", "Ours").stderr
    assert "table2 only quotes that row" in kd("ablate", "early", "table2", "--only", "MSRNN").stderr


def test_lists_as_json():
    assert [one["name"] for one in json.loads(said("datasets", "--json"))] == datasets.names()
    folder = json.loads(said("datasets", "folder", "--json"))
    assert {one["name"] for one in folder["options"]} >= {"subject", "held_out", "observe"}
    assert {one["name"] for one in json.loads(said("weights", "list", "--json"))} >= {"i3d-rgb", "resnet34"}
    assert [one["name"] for one in json.loads(said("methods", "--json"))] == list(methods.METHODS)
    assert [one["name"] for one in json.loads(said("backbones", "--json"))] == backbones.names()


def test_check_as_json_keeps_its_status(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    result = kd("check", tmp_path / "bad.mp4", "--json")
    assert result.exit_code == 3
    (told,) = json.loads(result.stdout)
    assert told["file"] == str(tmp_path / "bad.mp4")
    assert "bad.mp4" in told["problem"]


def test_plain_data():
    @dataclasses.dataclass
    class Report:
        path: Path
        numbers: tuple[float, ...]
        table: pd.DataFrame
        array: np.ndarray

    report = Report(Path("a/b"), (1.5, math.nan, math.inf), pd.DataFrame({"x": [1, 2]}), np.array([True, False]))
    told = {"path": "a/b", "numbers": [1.5, None, None], "table": [{"x": 1}, {"x": 2}], "array": [True, False]}
    assert plain(report) == told
    assert plain({"r": [np.float32(0.5), np.int64(3), None, "t"]}) == {"r": [0.5, 3, None, "t"]}
    with pytest.raises(TypeError, match="a report holds a object"):
        plain(object())


# ---------------------------------------------------------------------------
# files
# ---------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path) -> Path:
    for name in ("run/a.mp4", "walk/b.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


def test_a_manifest_goes_to_standard_output_or_a_file_under_either_spelling(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = said("manifest", "folder", "--root", videos, "-o", "-")
    assert not (tmp_path / "-").exists()
    for number, spelling in enumerate(("-o", "--out", "--output")):
        file = tmp_path / f"{number}.csv"
        assert said("manifest", "folder", "--root", videos, spelling, file) == f"{file}: 2 clips of 2 sources\n"
        assert file.read_text() == printed
    assert len(kdcache.read_manifest(tmp_path / "0.csv", videos)) == 2


def test_a_picture_has_a_place_of_its_own(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    seen: list[object] = []
    monkeypatch.setattr("kdcache.show", lambda *given: seen.append(given) or Path("x.png"), raising=False)
    assert said("show", cache, "a/b", "--output", "there.png") == "x.png\n"
    assert seen == [(cache, "a/b", Path("there.png"), None, "last")]


# ---------------------------------------------------------------------------
# help on what is named
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_train_help_lists_every_option_with_its_default(name):
    options = methods.method(name).Options
    fields = {field.name: field for field in dataclasses.fields(options)}
    assert set(option_names(name) or ()) == set(fields)
    text = " ".join(said("train", name, "--help").split())
    for field in fields.values():
        assert f" {field.name}=" in text, field.name
    assert " memory_fraction=0.6 " in text
    for preset in presets.names(name):
        assert preset in text
    told = json.loads(said("methods", name, "--json"))
    assert all(one["text"] for one in told["options"]), [one["name"] for one in told["options"] if not one["text"]]


def test_train_help_has_paper_values_and_what_is_reconstructed():
    text = " ".join(said("train", "early", "--help").split())
    assert "beta=1 β, the weight of L_self; 0 leaves it out. The paper: 1 on SYSU and NTU, 0.5 on UCF101." in text
    assert "tau=1 τ, by how many levels the later answer leads in L_self; below N. [reconstructed]" in text
    assert "(student | teacher | ts-lstm | rank-lstm | levels | knn)" in text


def test_train_help_of_recognition_is_of_cached_features_first():
    text = " ".join(said("train", "recognition", "--help").split())
    for default in ("lr=0.001", "epochs=50", "batch_size=32", "dropout=0.5", "weight_decay=0.001", "optimizer=adam"):
        assert f" {default} " in text
    names = list(option_names("recognition") or ())
    told = [one["name"] for one in json.loads(said("methods", "recognition", "--json"))["options"]]
    assert sorted(told) == sorted(names)
    assert told.index("epochs") < told.index("init")
    assert told.index("dropout") < told.index("view_lr")


def test_other_helps_list_what_is_named():
    assert "RankLSTM; KNN; TS-LSTM*" in " ".join(said("ablate", "early", "--help").split())
    fitted = " ".join(said("fit", "tsm", "--help").split())
    assert " dropout=0.8 " in fitted
    assert " backbone=" not in fitted
    assert "is not" in kd("fit", "i3d-flow", "--help").stderr or "does not train" in kd("fit", "i3d-flow", "-h").stderr
    for call in (["manifest", "folder"], ["extract", "--dataset", "folder"], ["fit", "--dataset", "folder"]):
        assert " held_out_share=0.0 " in " ".join(said(*call, "--help").split())
    assert kd("train", "late", "--help").stderr.startswith("Error: Unknown method 'late'")


def test_backbones_say_what_a_clip_takes():
    told = json.loads(said("backbones", "i3d-rgb", "--json"))
    layers = {one["name"]: one for one in told["layers"]}
    assert [one["published"] for one in told["layers"]] == backbones.layer_names("i3d-rgb")
    assert layers["mixed4a"]["shape"] == [1, 480, 8, 14, 14]
    assert layers["mixed4a"]["bytes"] == 480 * 8 * 14 * 14 * 2
    assert layers["mixed4a"]["published"] == "MaxPool3d_4a_3x3"
    told = json.loads(said("backbones", "tsm", "--levels", "10", "--views", "centre,centre-flip", "--json"))
    clip = next(one for one in told["layers"] if one["name"] == "clip")
    assert (clip["axes"], clip["shape"], clip["bytes"]) == ("VND", [2, 10, 2048], 2 * 10 * 2048 * 2)
    assert told["summary"]["fitted"]
    for name in backbones.names():
        assert said("backbones", name).count("\n") > len(backbones.layer_names(name))
    assert "did you mean 'i3d-rgb'" in kd("backbones", "i3drgb").stderr
    assert kd("backbones", "--levels", "4").exit_code == 2


# ---------------------------------------------------------------------------
# what is refused at once
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "erly"], "did you mean 'early'"),
        (["train", "early", "--set", "epoch=1"], "did you mean 'epochs'"),
        (["train", "early", "--preset", "syzu"], "did you mean 'sysu'"),
        (["ablate", "erly"], "did you mean 'early'"),
        (["ablate", "early", "tabel2"], "did you mean 'table2'"),
        (["train", "early", "--row", "table2/TSLSTM"], "did you mean 'TS-LSTM*'"),
        (["ablate", "early", "--set", "alhpa=1"], "did you mean 'alpha'"),
        (["extract", "--for", "erly"], "did you mean 'early'"),
        (["extract", "--for", "early", "--preset", "syzu"], "did you mean 'sysu'"),
        (["fit", "tsm", "--dataset", "floder"], "did you mean 'folder'"),
        (["backbones", "tms"], "did you mean 'tsm'"),
    ],
)
def test_a_misspelt_name_is_refused_before_torch_is_imported(arguments, message):
    code = (
        "import sys\nfrom kdcache.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n", done.stderr
    assert message in done.stderr


def test_advice_is_right_for_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KDCACHE_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r", name another checkpoint with --weights FILE, or ask for --weights rand"):
        find("i3d-rgb")
    with (
        asked_by("--set init="),
        pytest.raises(WeightsError, match=r"with --set init=FILE, or ask for --set"),
    ):
        find("resnet34")
    message = kd("weights", "path", "i3d-rgb").stderr
    assert "kdcache weights fetch i3d-rgb" in message
    assert "--weights" not in message
    with pytest.raises(WeightsError, match=r"for vacnn: fit some with `kdcache fit vacnn`, name a checkpoint with"):
        find("vacnn")


def test_blocks_of_a_network_from_elsewhere_are_listed():
    text = said("backbones", "torchvision:vit_b_16")
    assert "encoder.layers.encoder_layer_11 " in text
    assert "published name" not in text
    assert "published name" in said("backbones", "i3d-rgb")
