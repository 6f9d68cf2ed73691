"""Tables with rows of several methods, and tuning of methods that are trained in several stages."""

from __future__ import annotations

import json
import tomllib

import clips_cache
import pandas as pd
import pytest
from click.testing import CliRunner
from unsealed import unsealed

import kdcache
from kdcache.cli import main
from kdcache.errors import OptionError
from kdcache.methods import METHODS
from kdcache.report.tables import markdown
from kdcache.runs import presets
from kdcache.runs.ablation import tuning
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.conclusion import conclude
from kdcache.runs.ablation.rows import choose_rows
from kdcache.runs.ablation.trials import rates_of
from kdcache.runs.train import Run

pytestmark = pytest.mark.usefixtures("one_thread", "staged")

PRESETS = """
[presets.small]
width = 6

[tables.table1]
caption = "Two stages and one"
preset = "small"

[[tables.table1.rows]]
name = "Staged"
options = {}
paper = { AUC = 70.0 }

[[tables.table1.rows]]
name = "Wide"
options = { width = 12 }
paper = {}

[[tables.table1.rows]]
name = "Baseline"
method = "early"
options = { alpha = 0.0, beta = 0.0, epochs = 2, milestones = [1], batch_size = 8, hidden = 8 }
paper = { AUC = 60.0 }

[[tables.table1.rows]]
name = "Elsewhere"
method = "early"
paper = { AUC = 50.0 }
"""


@pytest.fixture
def staged(monkeypatch):
    """The toy method and its tables, as if they were the package's."""
    monkeypatch.setitem(METHODS, "staged", "staged_method")
    original = presets._read
    monkeypatch.setattr(presets, "_read", lambda name: tomllib.loads(PRESETS) if name == "staged" else original(name))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return clips_cache.cache(tmp_path_factory.mktemp("cache"), train=24, validation=18, test=12, noise=4.0)


def test_a_row_of_another_method_is_complete_by_itself():
    table = choose_rows("staged", "table1", {}, {}, None, {})
    by_name = {row.name: row for row in table.rows}
    assert by_name["Wide"].options == {"width": 12}
    assert by_name["Staged"].options == {"width": 6}
    assert "width" not in by_name["Baseline"].options  # nothing of the table's preset
    assert [table.method_of(row) for row in table.runnable] == ["staged", "staged", "early"]
    assert by_name["Elsewhere"].quoted
    assert table.of_others == {"early": ["Baseline"]}


def test_options_for_all_rows_must_exist_in_every_method():
    table = choose_rows("staged", "table1", {}, {"label_fraction": [0.5, 1.0]}, None, {"validation": 0.3})
    assert [row.name for row in table.runnable][-2:] == ["Baseline, label_fraction=0.5", "Baseline, label_fraction=1"]
    assert all(row.options["validation"] == 0.3 for row in table.runnable)
    assert {table.method_of(row) for row in table.runnable[-2:]} == {"early"}
    with pytest.raises(OptionError, match="Row 'Baseline', which early trains: Unknown option 'width'"):
        choose_rows("staged", "table1", {}, {}, None, {"width": 3})
    with pytest.raises(OptionError, match="Row 'Baseline, width=3', which early trains: Unknown option 'width'"):
        choose_rows("staged", "table1", {}, {"width": [3, 4]}, None, {})
    with pytest.raises(OptionError, match="Row 'Staged': Unknown option 'alpha'"):
        choose_rows("staged", "table1", {}, {}, None, {"alpha": 0.5})


def test_a_row_with_another_methods_options_is_refused(monkeypatch):
    wrong = PRESETS.replace("alpha = 0.0, beta", "width = 3, beta")
    monkeypatch.setattr(presets, "_read", lambda name: tomllib.loads(wrong))
    with pytest.raises(OptionError, match="Unknown option 'width'"):
        presets.tables("staged")
    monkeypatch.setattr(presets, "_read", lambda name: tomllib.loads(PRESETS.replace('"early"', '"earli"')))
    with pytest.raises(OptionError, match="Unknown method 'earli': did you mean 'early'"):
        presets.tables("staged")


def test_a_method_without_either_cannot_be_tuned(monkeypatch):
    import staged_method

    monkeypatch.setattr(staged_method, "Options", staged_method.LabelOptions)
    with pytest.raises(OptionError, match="staged has no lr and epochs to tune, nor lr_factor and length"):
        rates_of("staged")


@pytest.fixture
def mixed(shards, tmp_path):
    how = {"seeds": 2, "tune": 3, "min_steps": 1, "widen": 0, "device": "cpu"}
    return kdcache.ablate("staged", "table1", shards=shards, out=tmp_path / "mixed", **how)


def test_a_mixed_table_is_trained_tuned_and_shown(mixed, shards):
    for row, method in (("staged", "staged"), ("wide", "staged"), ("baseline", "early")):
        for seed in (0, 1):
            assert Run(mixed.path / row / f"seed-{seed}").settings.method == method
    tuned = mixed.tuning
    assert list(tuned.columns[:7]) == ["row", "split_column", "trial", "lr", "epochs", "lr_factor", "length"]
    of = tuned.set_index(["row", "trial"])
    assert of.loc["Baseline", ["lr_factor", "length"]].isna().all(axis=None)
    assert of.loc["Staged", ["lr", "epochs"]].isna().all(axis=None)
    assert set(of.loc["Baseline", "epochs"]) <= {2, 4, 8}
    assert set(of.loc["Wide", "length"]) <= {1.0, 2.0, 4.0}
    assert of.loc["Wide", "length"].tolist() == of.loc["Staged", "length"].tolist()
    assert tuned[tuned["chosen"] & tuned["row"].isin(["Staged", "Wide"])]["length"].nunique() == 1  # as many steps
    for row, slug in (("Staged", "staged"), ("Wide", "wide")):
        chosen = tuned[(tuned["row"] == row) & tuned["chosen"]].iloc[0]
        final = Run(mixed.path / slug / "seed-1")
        assert (final.options.lr_factor, final.options.length) == (chosen["lr_factor"], chosen["length"])
        assert [len(final.history[final.history["stage"] == s]) for s in ("map", "classifier")] == [
            max(1, round(2 * chosen["length"]))
        ] * 2
    pd.testing.assert_frame_equal(tuning.read_tuning(mixed.path), tuned)
    common = {"method": "staged", "shards": str(shards), "device": "cpu", "precision": "auto", "stream": None}
    calls = Calls(comparison=conclude(mixed.path).comparison, common=common, one_teacher=True)
    how = tuning.SearchSettings(count=3, min_steps=1, widen=0)
    again = tuning.choose(calls, mixed.path, how, {None: tuning.survey_rows(calls, None)}, [[None]])
    pd.testing.assert_frame_equal(again.table, tuned)  # found finished, and the same to the last digit
    header = "| row | trial | lr | epochs | lr_factor | length | also | score | score of its own settings |"
    assert header in mixed.text
    shown = {cells[0]: cells for text in mixed.text.partition(header)[2].splitlines() if (cells := text.split(" | "))}
    assert shown["| Baseline"][4:6] == ["", ""]
    assert shown["| Wide"][2:4] == ["", ""]
    assert "Rows that another method trains: Baseline by early." in mixed.text
    assert "| Elsewhere (quoted, not run) | 50.0 |" in mixed.text
    pictures = {"effects.png", "curve.png", "training.png", "gain.png", "confusion.png"}
    assert {p.name for p in mixed.path.glob("*.png")} == pictures
    call = json.loads((mixed.path / "ablation.json").read_text())["rows"][-1]
    assert call["arguments"]["method"] == "early"
    assert kdcache.train(**call["arguments"], out=call["folder"]).metrics  # found finished, with equal settings


def test_factors_alone_are_the_columns_and_an_old_description_opens(shards, tmp_path):
    rows = {"narrow": {"width": 2}, "wide": {}}
    made = kdcache.ablate("staged", shards=shards, rows=rows, seeds=1, tune=2, min_steps=1, out=tmp_path, device="cpu")
    assert list(made.tuning.columns[2:6]) == ["trial", "lr_factor", "length", "settings"]
    assert "| row | trial | lr_factor | length | score |" in made.text
    assert "another method" not in made.text
    path = unsealed(tmp_path / "ablation.json")
    stored = json.loads(path.read_text())
    for row in stored["comparison"]["rows"]:
        del row["method"]  # as versions wrote it that knew one method a table
    path.write_text(json.dumps(stored))
    assert markdown(conclude(tmp_path)) == made.text


def test_the_row_decides_the_method_that_train_runs(shards, tmp_path):
    def call(*more):
        return CliRunner().invoke(main, ["train", "staged", f"--shards={shards}", "--device=cpu", *more])

    told = call("--row=table1/Baseline", f"--out={tmp_path / 'run'}", "--set=beta=0.0", "--set=teacher_hidden=4")
    assert told.exit_code == 0, told.output
    run = Run(tmp_path / "run")
    assert (run.settings.method, run.options.epochs, run.options.teacher_hidden) == ("early", 2, 4)
    own = call("--row=table1/Wide", f"--out={tmp_path / 'own'}")
    assert own.exit_code == 0, own.output
    assert (Run(tmp_path / "own").settings.method, Run(tmp_path / "own").options.width) == ("staged", 12)
    refused = call("--row=table1/Baseline", "--preset=small")
    assert refused.exit_code == 1
    assert "is trained by early, whose options are all in the row: leave --config and --preset of staged" in (
        " ".join(refused.output.split())
    )
    quoted = call("--row=table1/Elsewhere")
    assert quoted.exit_code == 1
    assert "only quoted" in quoted.output
