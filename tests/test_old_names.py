"""Runs that version 0.1 began go on, and its names of options work for one release, with a warning."""

from __future__ import annotations

import re

import pairs_cache
import pytest
import torch
from click.testing import CliRunner
from unsealed import unsealed

import kdcache
from kdcache.cli import main
from kdcache.engine import loop
from kdcache.errors import OptionError
from kdcache.runs.config import load_config, parse_set, read_config
from kdcache.runs.fit import parse_set as parse_fit

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"head": "light", "width": 8, "epochs": 2, "milestones": (), "batch_size": 16, "device": "cpu"}
WARNING = "option {} is called {} now; the old name goes with the next release"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pairs_cache.cache(tmp_path_factory.mktemp("cache"), 24, 8, tau="1.0", fold="train")


class Crash(RuntimeError):
    pass


def interrupted(shards, out, step, monkeypatch, **options):
    """A run that died after a step, as version 0.1 would have left it."""
    taken, original = iter(range(1, 1000)), loop._step

    def stopping(run, batch):
        original(run, batch)
        if next(taken) == step:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(Crash):
            kdcache.train("anticipation", shards, out=out, save_every=0.0, **QUICK | options)
    config = unsealed(out / "config.toml")
    text = config.read_text().replace("memory_fraction", "hold").replace("split_column", "split")
    text = re.sub(r"tau_s = (.*)\n", "", text)
    for table in ("[options]", "[resolved.options]"):
        text = text.replace(table, f"{table}\ntau = 1.0")
    text = re.sub(r"(?m)^(label_seed|patience|manifest|root|decoder) = .*\n", "", text)
    config.write_text(text)
    for path in out.rglob("state.pt"):
        state = torch.load(path, weights_only=True)
        del state["progress"]["steps"]
        torch.save(state, path)
    return config


def test_a_run_that_0_1_began_goes_on_to_the_same_numbers(shards, tmp_path, monkeypatch):
    given = {"data": "S", "tau_s": 1.0}
    whole = kdcache.train("anticipation", shards, out=tmp_path / "whole", save_every=0.0, **QUICK | given)
    config = interrupted(shards, tmp_path / "run", 6, monkeypatch, **given)
    settings, options, resolved = read_config(config)
    assert (settings.memory_fraction, settings.split_column, settings.tau_s) == (0.6, "split", 1.0)
    assert (options.label_seed, resolved["options"]["patience"]) == (0, 0)
    assert "tau" not in resolved["options"]
    assert load_config(config)["tau_s"] == 1.0
    run = kdcache.train(
        "anticipation", shards, out=tmp_path / "run", save_every=0.0, **QUICK | {"data": "S", "tau": 1.0}
    )
    assert (run.path / "predictions.csv").read_bytes() == (whole.path / "predictions.csv").read_bytes()
    assert run.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))


def test_an_epoch_of_another_length_is_not_gone_on_with(shards, tmp_path, monkeypatch):
    interrupted(shards, tmp_path / "run", 7, monkeypatch, data="S+U", tau_s=1.0)
    with pytest.raises(
        OptionError, match=r"state.pt cannot .*0.1, whose epochs had another number of steps\): delete it"
    ):
        kdcache.train(
            "anticipation", shards, out=tmp_path / "run", save_every=0.0, tau_s=1.0, **QUICK | {"data": "S+U"}
        )


def test_labels_that_0_1_kept_were_those_of_the_runs_seed(shards, tmp_path, monkeypatch):
    config = interrupted(shards, tmp_path / "run", 1, monkeypatch, data="S", tau_s=1.0, label_fraction=0.5, seed=3)
    assert read_config(config)[1].label_seed == 3


def test_old_names_work_from_python(shards, tmp_path, caplog):
    options = QUICK | {"epochs": 1, "data": "S", "loss_d": "none"}
    run = kdcache.train("anticipation", shards, out=tmp_path / "run", hold=0.25, split="split", tau=1.0, **options)
    assert (run.settings.memory_fraction, run.settings.split_column, run.settings.tau_s) == (0.25, "split", 1.0)
    for old, new in (("hold", "memory_fraction"), ("split", "split_column"), ("tau", "tau_s")):
        assert WARNING.format(old, new) in caplog.text
    caplog.clear()
    again = kdcache.train(
        "anticipation", shards, out=tmp_path / "run", memory_fraction=0.25, split_column="split", tau_s=1.0, **options
    )
    assert again.path == run.path
    assert "is called" not in caplog.text


def test_old_names_work_in_set(caplog):
    sets = ["hold=0.25", "split=fold", "tau=2"]
    assert parse_set("anticipation", sets) == {"memory_fraction": 0.25, "split_column": "fold", "tau_s": 2.0}
    assert len([r for r in caplog.records if "is called" in r.message]) == 3
    caplog.clear()
    assert parse_set("early", ["tau=2"]) == {"tau": 2}  # an option of that method's own
    assert not caplog.records


def test_old_names_work_for_fits(caplog):
    own, others = parse_fit(["hold=0.25", "split=fold"], dataset=False)
    assert (own, others) == ({"memory_fraction": 0.25, "split_column": "fold"}, ())
    own, others = parse_fit(["hold=0.25", "split=1"], dataset=True)
    assert (own, others) == ({"memory_fraction": 0.25}, ("split=1",))


def test_old_names_work_in_rows_and_grids(shards, tmp_path, caplog):
    call = ["ablate", "anticipation", f"--shards={shards}", "--row=plain:loss_d=none,data=S,tau=1", "--seeds=1"]
    call += ["--tune=0", "--device=cpu", "--set", "hold=0,0.5", "--set", "head=light", "--set", "width=4"]
    result = CliRunner().invoke(main, [*call, "--set", "epochs=1", "--set", "milestones=", f"--out={tmp_path / 'out'}"])
    assert result.exit_code == 0, result.output
    configs = [read_config(path)[0] for path in sorted((tmp_path / "out").rglob("config.toml"))]
    assert sorted(settings.memory_fraction for settings in configs) == [0.0, 0.5]
    assert {settings.tau_s for settings in configs} == {1.0}
    assert WARNING.format("hold", "memory_fraction") in caplog.text


def test_bad_settings_name_options_that_exist():
    with pytest.raises(OptionError, match=r"memory_fraction=2\.0: give a share of the free memory, 0 to 1"):
        kdcache.train("anticipation", "nowhere", hold=2.0)
    with pytest.raises(OptionError, match="seed=-1: give a whole number from 0 on"):
        kdcache.train("anticipation", "nowhere", seed=-1)
    with pytest.raises(OptionError, match="did you mean 'split_column'"):
        parse_set("anticipation", ["split_colum=fold"])
