"""What a run reads back: changed bytes are noticed in every file, old files without a digest open, none is half."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import tomllib
from pathlib import Path

import clips_cache
import pandas as pd
import pytest
import torch
from full_disk import files_of
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_stream import MemoryStream
from torch import nn
from unsealed import unsealed

import kdcache
from kdcache.backbones import metadata
from kdcache.backbones.weights import weights_digest
from kdcache.engine.checkpoint import TrainState, load_state, load_weights, save_state, save_weights
from kdcache.errors import KdcacheError, OptionError, WeightsError, WriteError
from kdcache.files import opened
from kdcache.methods.contract import BatchSource, Stage
from kdcache.runs.config import load_config, read_config
from kdcache.runs.evaluate import evaluate
from kdcache.runs.run import Run
from kdcache.seals import MOST_JSON, is_broken, is_sealed, read_json, write_json

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 2, "batch_size": 8, "hidden": 4, "device": "cpu", "alpha": 0.0, "save_every": 0.0}
BYTE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
quickly = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shards = clips_cache.cache(folder / "cache", train=24, validation=6, test=6)
    return kdcache.train("early", shards, out=folder / "run", **QUICK)


def flipped(path: Path, at: float, by: int) -> int:
    """Change one byte of a file; where it was."""
    content = bytearray(path.read_bytes())
    place = int(at * len(content))
    content[place] ^= by
    path.write_bytes(content)
    return place


def stage() -> Stage:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    source = BatchSource({"x": (MemoryStream(torch.zeros(4, 1, 3)), torch.arange(4))})
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2])
    return Stage(
        name="s",
        module=net,
        train=source,
        losses=lambda batch: {},
        predict=lambda batch: torch.zeros(1),
        epochs=3,
        batch_size=2,
        eval_sets={},
        optimizer=optimizer,
        scheduler=schedule,
    )


def state_of(found: tuple[TrainState, dict[str, torch.Tensor]], made: Stage) -> str:
    assert made.optimizer is not None
    return repr((found, made.module.state_dict(), made.optimizer.state_dict(), torch.get_rng_state().tolist()))


@pytest.fixture
def saved_state(tmp_path):
    save_state(
        tmp_path, stage(), SCALER, TrainState(epoch=1, rows=[{"epoch": 1, "loss": 0.5}]), {"w": torch.ones(2)}, CPU
    )
    return tmp_path


CPU = torch.device("cpu")
SCALER = torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize("old", [False, True])
def test_a_state_with_a_changed_byte_is_refused_or_the_same(saved_state, old):
    """Also one of an earlier version, which has the archive's checksums alone."""
    path = saved_state / "state.pt"
    if old:
        content = path.read_bytes()
        path.write_bytes(content[: content.rindex(b"kdcache-sha256") - 2] + bytes(2))
    assert is_sealed(path) is not old
    pristine, made, refused = path.read_bytes(), stage(), 0
    found = load_state(saved_state, made, SCALER, CPU)
    assert found is not None
    assert found[0].rows == [{"epoch": 1, "loss": 0.5}]
    expected = state_of(found, made)

    @quickly
    @given(BYTE)
    def holds(change):
        nonlocal refused
        path.write_bytes(pristine)
        place = flipped(path, *change)
        again = stage()
        try:
            other = load_state(saved_state, again, SCALER, CPU)
        except OptionError as error:
            refused += 1
            assert str(error).startswith(f"{path} cannot be continued from")  # noqa: PT017
        else:
            assert other is not None
            assert state_of(other, again) == expected
            assert old or pristine.rindex(b"kdcache") <= place < pristine.rindex(b"kdcache") + 15  # the digest's name

    holds()
    assert refused > (40 if old else 55)


@quickly
@given(st.integers(0, 10**4))
def test_a_truncated_state_is_refused(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("state")
    save_state(folder, stage(), SCALER, TrainState(), {}, CPU)
    content = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(content[: cut % (len(content) - 80)])
    with pytest.raises(OptionError, match=r"state\.pt cannot be continued from .*delete it"):
        load_state(folder, stage(), SCALER, CPU)
    shutil.rmtree(folder)


def test_weights_with_a_changed_byte_are_refused_or_the_same(tmp_path):
    path, net = tmp_path / "last.safetensors", nn.Linear(3, 2)
    save_weights(path, net.state_dict(), 3)
    pristine, expected = path.read_bytes(), repr(net.state_dict())

    @quickly
    @given(BYTE)
    def holds(change):
        path.write_bytes(pristine)
        place = flipped(path, *change)
        try:
            load_weights(path, net)
        except WeightsError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert repr(net.state_dict()) == expected
            assert pristine.index(b"kdcache") <= place < pristine.index(b"kdcache") + 15  # the name of the digest

    holds()


def test_equal_weights_are_equal_files_and_earlier_ones_open(tmp_path):
    net = nn.Linear(3, 2)
    for name in ("a", "b"):
        save_weights(tmp_path / name, net.state_dict(), 3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    load_weights(unsealed(tmp_path / "a"), nn.Linear(3, 2))
    with pytest.raises(WeightsError, match="does not hold"):
        load_weights(tmp_path / "b", nn.Linear(2, 2))


@quickly
@given(st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=9) | st.lists(st.integers())), BYTE)
def test_tables_come_back_or_are_refused(tmp_path_factory, content, change):
    path = tmp_path_factory.getbasetemp() / "table.json"
    write_json(path, content)
    content.pop("seal", None)
    assert repr(read_json(path, "mend it")) == repr(content)
    before = path.read_bytes()
    place = flipped(path, *change)
    try:
        found = read_json(path, "mend it")
    except OptionError as error:
        assert str(error).endswith("mend it.")  # noqa: PT017
    else:
        assert b"kdcache-sha256" in before[max(0, place - 20) : place + 20] or b'"seal"' in before[: place + 9]
        assert all(repr(found.get(name)) == repr(value) for name, value in content.items())


@pytest.mark.parametrize(
    "name",
    ["config.toml", "metrics.json", "recipes.json", "metrics.csv", "predictions.csv", "student/summary.json",
     "student/last.safetensors", "student/best.safetensors"],
)  # fmt: skip
def test_every_file_of_a_run_is_held_against_its_digest(run, tmp_path, name):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])

    def read():
        opened = Run(copy)
        evaluate(opened)
        assert opened.recipes  # which no evaluation reads

    with pytest.raises(KdcacheError, match=name.rpartition("/")[2].replace(".", r"\.")) as refused:
        read()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "config.toml",
        "metrics.json",
        "metrics.csv",
        "predictions.csv",
        "student/summary.json",
        "student/last.safetensors",
    ],
)
def test_what_is_no_plain_file_is_named_and_not_waited_for(run, tmp_path, name):
    copied = shutil.copytree(run.path, tmp_path / "run")
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(KdcacheError, match=f"{name}: no plain file"):
        evaluate(copied)
    (copied / name).unlink()
    (copied / name).mkdir()
    with pytest.raises(KdcacheError, match=f"{name}: no plain file"):
        evaluate(copied)


def test_only_plain_files_are_opened(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as here:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        here.bind("socket")
        with pytest.raises(KdcacheError, match="socket: no plain file"):
            opened("socket")
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"content")
    with opened(tmp_path / "link") as file:
        assert file.read() == b"content"


def test_a_run_without_digests_opens_and_goes_on(run, tmp_path):
    """As earlier versions left it."""
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    for path in (*copy.rglob("*.json"), *copy.rglob("*.safetensors"), copy / "config.toml"):
        assert not is_broken(unsealed(path))
        assert not is_sealed(path)
    for path in (copy / "metrics.json", copy / "student" / "summary.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in ("seal", "files", "weights")}))
    assert Run(copy).metrics == run.metrics
    assert evaluate(copy)["last"] == run.metrics["last"]
    pd.testing.assert_frame_equal(Run(copy).history, run.history)
    (copy / "metrics.json").unlink()
    assert kdcache.train("early", run.settings.shards, out=copy, **QUICK).metrics == run.metrics


def test_a_finished_stage_is_looked_at_when_a_run_goes_on(run, tmp_path):
    """Also at what it does not read, and a state that a kill between two steps has left is removed."""
    for spoil in (lambda path: flipped(path, 0.99, 1), lambda path: path.write_bytes(path.read_bytes()[:100])):
        copy = Path(shutil.copytree(run.path, tmp_path / "run"))
        (copy / "metrics.json").unlink()
        (copy / "student" / "state.pt").write_bytes(b"left")
        best = copy / "student" / "best.safetensors"
        content = best.read_bytes()
        best.unlink()  # it may be another name of the last
        best.write_bytes(content)
        spoil(best)
        with pytest.raises(WeightsError, match=r"best\.safetensors is not as it was written.*delete the folder"):
            kdcache.train("early", run.settings.shards, out=copy, **QUICK)
        best.write_bytes(content)
        assert kdcache.train("early", run.settings.shards, out=copy, **QUICK).metrics["last"] == run.metrics["last"]
        assert not (copy / "student" / "state.pt").exists()
        shutil.rmtree(copy)


def test_what_is_damaged_is_made_again_as_the_sentence_says(run, tmp_path):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    flipped(copy / "student" / "last.safetensors", 0.99, 1)
    with pytest.raises(WeightsError, match=r"delete the folder .*student, and metrics\.json beside it, and repeat"):
        evaluate(copy)
    shutil.rmtree(copy / "student")
    (copy / "metrics.json").unlink()
    again = kdcache.train("early", run.settings.shards, out=copy, **QUICK)
    assert again.metrics["last"] == run.metrics["last"]
    assert evaluate(again)["last"] == run.metrics["last"]


@pytest.fixture(scope="module")
def another(run, tmp_path_factory):
    """A run that differs in its seed alone, so that each of its files fits the other run."""
    return kdcache.train("early", run.settings.shards, out=tmp_path_factory.mktemp("runs") / "run", **QUICK, seed=1)


def predictions(path: Path) -> list[pd.DataFrame]:
    return [Run(path).predict("test", which) for which in ("last", "best")]


@pytest.mark.parametrize(
    "name",
    ["config.toml", "metrics.json", "student/summary.json", "student/last.safetensors", "student/best.safetensors"],
)
@pytest.mark.parametrize("ask", [evaluate, predictions])
def test_a_file_of_another_run_is_named(run, another, tmp_path, name, ask):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    assert ask(copy) is not None
    shutil.copy(another.path / name, copy / name)
    refused = r"is of another training than summary\.json|and metrics\.json are not of one run|is not as it was written"
    with pytest.raises(KdcacheError, match=refused) as error:
        ask(copy)
    assert str(copy) in str(error.value)
    if name in ("config.toml", "metrics.json"):
        with pytest.raises(OptionError, match=r"config\.toml and metrics\.json are not of one run: restore both"):
            Run(copy).metrics  # noqa: B018


def test_a_state_of_another_seed_is_not_continued(tmp_path):
    save_state(tmp_path, stage(), SCALER, TrainState(epoch=1), {}, CPU, seed=1)
    assert load_state(tmp_path, stage(), SCALER, CPU, seed=1) is not None
    with pytest.raises(OptionError, match=r"state\.pt cannot be continued from \(it is of another training: seed 1\)"):
        load_state(tmp_path, stage(), SCALER, CPU, seed=0)


def test_a_configuration_changed_by_hand_trains_again_and_opens_where_its_digest_is_taken_out(run, tmp_path, caplog):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    config = copy / "config.toml"
    config.write_text(config.read_text().replace("seed = 0\n", "seed = 5\n", 1))
    with pytest.raises(OptionError, match=r"config\.toml is not as its run wrote it.*delete its first line"):
        Run(copy)
    assert load_config(config)["seed"] == 5
    assert "was changed since its run wrote it" in caplog.text
    config.write_text(config.read_text().partition("\n")[2])
    assert Run(copy).settings.seed == 5
    (copy / "metrics.json").unlink()
    with pytest.raises(OptionError, match="seed: 5 → 0"):
        kdcache.train("early", run.settings.shards, out=copy, **QUICK)


@quickly
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_configuration_is_refused(run, tmp_path_factory, share):
    """What is left of it may well be TOML."""
    path = tmp_path_factory.getbasetemp() / "config.toml"
    content = (run.path / "config.toml").read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(OptionError, match=r"config\.toml"):
        read_config(path)


TOML = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@quickly
@given(st.data())
def test_any_table_as_a_configuration_is_read_or_refused_in_a_sentence(run, tmp_path_factory, data):
    import tomli_w

    path = tmp_path_factory.getbasetemp() / "config.toml"
    content = tomllib.loads((run.path / "config.toml").read_text())
    table = data.draw(st.sampled_from([content, content["options"], content["resolved"]]))
    name = data.draw(st.sampled_from([*table, "other"]))
    value = data.draw(TOML)
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value
    try:
        path.write_bytes(tomli_w.dumps(content).encode())
    except (TypeError, UnicodeEncodeError):  # it holds None somewhere, which is no TOML
        return
    try:
        read_config(path)
    except OptionError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"[1, 2]", b"null", b"[" * 100_000, b"NaN"])
def test_json_that_is_none_is_named(run, tmp_path, content):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    for name in ("metrics.json", "recipes.json", "student/summary.json"):
        path = copy / name
        before = path.read_bytes()
        path.write_bytes(content)
        opened = Run(copy)
        with pytest.raises(OptionError, match=f"{path.name} is damaged"):
            opened.recipes if name == "recipes.json" else evaluate(copy)
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("student/summary.json", {}),
        ("student/summary.json", {"epochs": 1, "selected_by": "", "rows": {}}),
        ("metrics.json", {}),
        ("metrics.json", {"epochs": {}, "last": {"test": 3}}),
    ],
)
def test_json_of_something_else_is_named(run, tmp_path, name, content):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / name).write_text(json.dumps(content))
    with pytest.raises(OptionError, match=f"{Path(name).name} is damaged"):
        str(Run(copy)) if name == "metrics.json" else evaluate(copy)


def test_json_larger_than_any_is_not_read(tmp_path):
    with (tmp_path / "metrics.json").open("wb") as file:
        file.truncate(MOST_JSON + 1)
    with pytest.raises(OptionError, match=r"metrics.json is damaged \(it has 268,435,457 bytes\): mend it"):
        read_json(tmp_path / "metrics.json", "mend it")


def test_nested_toml_is_named(tmp_path):
    (tmp_path / "config.toml").write_text("method = 'early'\na = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(OptionError, match=r"config\.toml is damaged"):
        Run(tmp_path)


def test_exported_weights_are_held_against_their_digest(tmp_path):
    path = tmp_path / "w.safetensors"
    facts = metadata.FitMetadata(backbone="vacnn", num_classes=2, classes=(0, 1), fitted_on=("a",))
    metadata.write(path, {"w": torch.arange(3.0)}, facts)
    assert metadata.read_metadata(path) == facts
    assert weights_digest(path)
    flipped(path, 0.99, 1)
    with pytest.raises(WeightsError, match=r"w\.safetensors is not as it was written"):
        weights_digest(path)


def test_a_shared_stage_that_is_damaged_is_named(tmp_path):
    from kdcache.runs.session import Session

    shards = clips_cache.cache(tmp_path / "cache", train=24, validation=6, test=6)
    kdcache.train("early", shards, out=tmp_path / "a", session=Session(tmp_path / "stages"), **QUICK | {"alpha": 0.5})
    (kept,) = (tmp_path / "stages").iterdir()
    shutil.rmtree(tmp_path / "a")
    flipped(kept / "last.safetensors", 0.99, 1)
    with pytest.raises(WeightsError, match=r"delete the folder .*stages"):
        kdcache.train(
            "early", shards, out=tmp_path / "b", session=Session(tmp_path / "stages"), **QUICK | {"alpha": 0.5}
        )


def test_a_disk_that_fills_while_training_is_one_sentence_and_the_run_goes_on(run, tmp_path, capfd):
    named, before = set(), set(threading.enumerate())
    for number, (most, often) in enumerate([(10, True), (2000, True), (2000, False), (2300, False)]):
        out = tmp_path / str(number)
        options = QUICK | {"save_every": 0.0 if often else 1000.0}
        with files_of(most), pytest.raises(WriteError, match=r"cannot be written .*; then the same command") as full:
            kdcache.train("early", run.settings.shards, out=out, **options)
        named.add(Path(str(full.value).partition(" cannot")[0]).name)
        assert "\n" not in str(full.value)
        assert not list(out.rglob("*.partial"))
        assert set(threading.enumerate()) <= before
        again = kdcache.train("early", run.settings.shards, out=out, **options)
        assert again.metrics["last"] == run.metrics["last"]
        assert (out / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()
    assert {"config.toml", "state.pt"} < named, named
    assert "Traceback" not in capfd.readouterr().err
