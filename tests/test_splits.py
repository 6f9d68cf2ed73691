"""One cache, several protocol splits: each run knows only its own column, and numbers are those of separate caches."""

from __future__ import annotations

import json

import clips_cache
import numpy as np
import pairs_cache
import pandas as pd
import pytest
from click.testing import CliRunner
from unsealed import unsealed

import kdcache
from kdcache.cli import main
from kdcache.data.clips import clips
from kdcache.data.pairs import pairs
from kdcache.data.splits import assign_splits, split_by, warn_of_unseen_classes
from kdcache.errors import OptionError
from kdcache.methods.contract import HELD_OUT
from kdcache.metrics.significance import compare, mean_std
from kdcache.report.tables import over_what, results_table
from kdcache.runs.ablation import tuning
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.replicates import Replicate, choose_columns, in_words, row_folder
from kdcache.runs.ablation.rows import Comparison, choose_rows
from kdcache.runs.fit import parse_set
from kdcache.runs.fuse import fuse
from kdcache.runs.presets import TableRow
from kdcache.runs.train import Run
from kdcache.splits import split_columns

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 2, "milestones": (1,), "batch_size": 8, "hidden": 8, "device": "cpu", "beta": 0}
SHORT = {"min_steps": 1, "widen": 0}
ROWS = {"plain": {"alpha": 0}, "knn": {"model": "knn"}}
COLUMNS = ["split_1", "split_2"]


def table():
    """36 clips; in ``split_1`` every third is tested, in ``split_2`` the one after it, and six take no part."""
    rows = clips_cache.rows(36, 0)
    turn = np.arange(36) // 3 % 3
    first = np.select([turn == 0, turn == 1], ["test", "val"], "train")
    second = np.select([np.arange(36) >= 30, turn == 1, turn == 2], ["", "test", "validation"], "train")
    return rows.assign(split_1=first, split_2=second)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    rows = table()
    vectors = {clips_cache.STREAM: clips_cache.arrays(rows, noise=4.0)}
    return clips_cache.write(tmp_path_factory.mktemp("cache"), rows, vectors)


@pytest.fixture(scope="module")
def compared(shards, tmp_path_factory):
    """Two rows on two splits with two seeds, tuned."""
    out = tmp_path_factory.mktemp("ablations") / "early"
    return kdcache.ablate(
        "early", shards=shards, rows=ROWS, seeds=2, tune=2, split_columns=["split_*"], out=out, **SHORT, **QUICK
    )


# The column that says which clips train


def test_a_column_takes_the_place_of_split():
    rows = table().assign(subject_2="s1", fold="")
    assert split_columns(rows) == ["split", *COLUMNS]
    assert split_by(rows, "split") is rows
    made = clips(split_by(rows, "split_2"), np.ones(36, bool), 0.2)
    for split, names in (("train", ["train"]), ("validation", ["validation"]), ("test", ["test"])):
        assert made.splits[split].names == rows["clip_id"][rows["split_2"].isin(names)].tolist()
    assert made.classes == clips(rows, np.ones(36, bool), 0.2).classes


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("split_3", "Unknown split column 'split_3': did you mean 'split_"),
        (
            "subject",
            "split_column=subject: 'train0' is not the name of a split; choose a column of train, validation and test",
        ),
        ("label", "split_column=label: '0' is not the name of a split"),
        ("empty", "split_column=empty: every cell of that column is empty"),
    ],
)
def test_other_columns_are_refused(column, message):
    with pytest.raises(OptionError, match=message):
        split_by(table().assign(empty=""), column)


def test_one_value_of_any_column_can_be_left_out():
    rows = table().assign(person=[1, 2, None] * 12)
    rows.loc[0, "person"] = pd.NA
    made = split_by(rows, "person=2.0")["split"]
    expected = ["", "test", ""] + ["train", "test", ""] * 11  # an empty cell takes no part
    assert made.tolist() == expected
    made = clips(split_by(rows, "subject=train2"), np.ones(36, bool), 0.2)
    subject = rows.set_index("clip_id")["subject"]
    assert set(subject[made.splits["test"].names]) == {"train2"}
    held = set(subject[made.splits["validation"].names])
    assert len(held) == 1  # a whole group
    assert held.isdisjoint({"train2"} | set(subject[made.splits["train"].names]))
    assert sum(len(split) for split in made.splits.values()) == 36
    odd = rows.assign(**{"subject=train2": "train"})  # a column of that very name comes first
    assert set(split_by(odd, "subject=train2")["split"]) == {"train"}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("sbject=train0", "Unknown column of the manifest 'sbject': did you mean 'subject'"),
        ("subject=train9", "Unknown value of column subject 'train9': did you mean 'train"),
        ("one=a", "one=…: column one has one value, 'a', so nothing is left to train on"),
        ("empty=a", "empty=…: column empty is empty"),
    ],
)
def test_values_that_cannot_be_left_out_are_refused(column, message):
    with pytest.raises(OptionError, match=message):
        split_by(table().assign(empty="", one="a"), column)


def test_clips_are_held_out_of_the_training_clips_of_the_column_alone():
    rows = table()
    rows["half"] = np.where(rows["subject"].isin(["train0", "train1"]), "test", "train")
    rows.loc[rows.index % 7 == 0, "half"] = ""
    made = clips(split_by(rows, "half"), np.ones(36, bool), 0.2)
    column = rows.set_index("clip_id")["half"]
    assert set(column[made.splits["validation"].names]) == {"train"}
    assert set(column[made.splits["test"].names]) == {"test"}


def test_pairs_that_take_no_part_are_neither_trained_on_nor_held_out():
    rows = pairs_cache.rows(40, split="")
    number = rows["pair"].str[1:].astype(int)
    rows["some"] = np.where(number < 30, "train", "")
    made = pairs(split_by(rows, "some"), np.ones(len(rows), bool), None, 0.2)
    used = {name for split in ("train", *HELD_OUT) if split in made.splits for name in made.splits[split].names}
    assert used == set(rows["pair"][rows["some"] == "train"])


def test_a_run_splits_by_its_column(shards, tmp_path):
    run = kdcache.train("early", shards, out=tmp_path / "run", split_column="split_2", alpha=0, **QUICK)
    column = table().set_index("clip_id")["split_2"]
    predicted = run.predictions()
    assert (column[predicted["clip_id"]].to_numpy() == predicted["split"].to_numpy()).all()
    assert set(predicted["clip_id"]) == set(column.index[column.isin(HELD_OUT)])
    assert Run(run.path).settings.split_column == "split_2"
    with pytest.raises(OptionError, match=r"other settings \(split_column: 'split_2'"):
        kdcache.train("early", shards, out=run.path, split_column="split_1", alpha=0, **QUICK)


def test_runs_from_before_there_were_columns_are_still_read(shards, tmp_path):
    folder = clips_cache.cache(tmp_path / "cache", train=24, validation=6, test=6)
    run = kdcache.train("early", folder, out=tmp_path / "run", alpha=0, **QUICK)
    config = unsealed(run.path / "config.toml")
    config.write_text(config.read_text().replace('split_column = "split"\n', ""))
    assert Run(run.path).settings.split_column == "split"
    assert kdcache.train("early", folder, out=run.path, alpha=0, **QUICK).metrics == run.metrics


def test_settings_of_a_fit_and_options_of_a_dataset_do_not_meet():
    assert parse_set(["split=split_2"], dataset=False) == ({"split_column": "split_2"}, ())
    assert parse_set(["split=2", "lr=0.1"], dataset=True) == ({"lr": 0.1}, ("split=2",))


# Comparisons


def test_numbers_are_those_of_separate_caches(compared, tmp_path):
    """Each column by itself as ``split`` of a cache that has no other: equal trials, choices, metrics and epochs."""
    for column in COLUMNS:
        rows = table()
        rows = rows.assign(split=rows[column]).drop(columns=COLUMNS)
        vectors = {clips_cache.STREAM: clips_cache.arrays(rows, noise=4.0)}
        folder = clips_cache.write(tmp_path / column, rows, vectors)
        alone = kdcache.ablate(
            "early", shards=folder, rows=ROWS, seeds=2, tune=2, out=tmp_path / f"{column}-out", **SHORT, **QUICK
        )
        for mine, theirs in ((compared.results, alone.results), (compared.tuning, alone.tuning)):
            mine = mine[mine["split_column"] == column].drop(columns="split_column").reset_index(drop=True)
            keys = [c for c in ("row", "seed", "trial", "weights", "split", "metric") if c in mine]
            mine, theirs = (t.sort_values(keys, ignore_index=True) for t in (mine, theirs))
            pd.testing.assert_frame_equal(mine, theirs.drop(columns="split_column"))


def test_every_row_split_and_seed_is_a_run_of_its_own(compared, shards):
    assert len(compared.results.drop_duplicates(["row", "split_column", "seed"])) == 2 * 2 * 2
    column = {name: table().set_index("clip_id")[name] for name in COLUMNS}
    for name in COLUMNS:
        for seed in (0, 1):
            run = Run(compared.path / "plain" / name / f"seed-{seed}")
            tested = run.predictions()
            assert (run.settings.split_column, run.settings.seed) == (name, seed)
            assert set(column[name][tested["clip_id"][tested["split"] == "test"]]) == {"test"}
        trials = [Run(p) for p in (compared.path / "plain" / name / "tuning").glob("trial-*/seed-1000")]
        assert [trial.settings.split_column for trial in trials] == [name, name]
    stored = json.loads((compared.path / "ablation.json").read_text())
    assert stored["split_columns"] == COLUMNS
    call = stored["rows"][-1]
    assert kdcache.train(**call["arguments"], out=call["folder"]).metrics  # found finished, with equal settings
    assert pd.read_csv(compared.path / "results.csv")["split_column"].value_counts().nunique() == 1


def test_tables_and_tests_are_over_splits_with_seeds_averaged_first(compared):
    r = compared.results
    r = r[(r["weights"] == "best") & (r["split"] == "test") & (r["metric"] == "auc")]
    values = {row: r[r["row"] == row].sort_values(["split_column", "seed"])["value"].to_numpy() for row in ROWS}
    test = compared.tests[compared.tests["weights"] == "best"].iloc[0]
    expected = compare(list((values["knn"] - values["plain"]).reshape(2, 2)))
    assert {name: test[name] for name in vars(expected)} == vars(expected)
    assert (test["units"], test["runs"]) == (2, 4)
    assert np.isnan(test["low_draws"])  # there is one draw
    text = compared.text
    assert "## Test, best on validation, 2 seeds × 2 splits (split_1, split_2)" in text
    assert "AUC against plain, points: mean over 2 splits, with 95 % intervals; seeds are averaged first" in text
    assert "Mean ± std over 2 splits, seeds averaged first:" in text
    assert "Splits share training clips" in text
    line = next(line for line in text.splitlines() if line.startswith("| **plain**"))
    over_splits = "{:.1f} ± {:.1f}".format(*mean_std(values["plain"].reshape(2, 2).mean(axis=1)))
    assert line.endswith(f"{over_splits} |")
    assert "Varied: 2 splits of the clips and 2 seeds of the trained networks in each." in text
    assert "| plain | split_2 |" in text  # what was chosen on it


def test_spread_over_splits_is_that_of_the_means_over_seeds():
    rows = [TableRow("A", {}, {"AUC": 1.0}), TableRow("B", {}, {"AUC": 2.0}, quoted=True)]
    wanted = Comparison("early", "", [], rows)
    known = {"row": "A", "draw": 0, "weights": "best", "split": "test", "metric": "auc", "epoch": 3, "steps": 6}
    found = pd.DataFrame(
        [
            known | {"split_column": f"s{s}", "seed": seed, "value": v}
            for s, values in enumerate([(10.0, 20.0), (30.0, 50.0)])
            for seed, v in enumerate(values)
        ]
    )
    lines = results_table(wanted, found, {"AUC": "auc"}, "best", "test")
    assert lines[2:] == ["| **A** | 3 | 6 | 27.5 ± 17.7 |"]
    assert over_what(found) == "Mean ± std over 2 splits, seeds averaged first"


def test_without_splits_nothing_is_different(shards, tmp_path):
    result = kdcache.ablate(
        "early", shards=shards, rows={"knn": ROWS["knn"]}, seeds=1, tune=0, split="split_1", out=tmp_path, **QUICK
    )
    assert (tmp_path / "knn" / "seed-0" / "metrics.json").exists()
    assert set(result.results["split_column"]) == {"split_1"}
    assert ", 1 seed\n" in result.text
    assert "split_columns" not in json.loads((tmp_path / "ablation.json").read_text())


def test_a_split_without_validation_clips_leaves_all_untuned(tmp_path, caplog):
    rows = table()
    rows["split_2"] = rows["split_2"].replace("validation", "train")
    folder = clips_cache.write(tmp_path / "cache", rows, {clips_cache.STREAM: clips_cache.arrays(rows)})
    caplog.set_level("INFO", "kdcache")
    common = {"method": "early", "shards": str(folder), "device": "cpu", "precision": "auto", "stream": None}
    wanted = choose_rows("early", None, ROWS, {}, None, {"validation": 0.0})
    both, one = (Calls(comparison=wanted, common=common, columns=columns) for columns in (COLUMNS, ["split_1"]))
    facts = tuning.survey_rows(both, None)
    assert tuning.automatic(both, facts) == 0
    assert caplog.messages[-1] == "not tuned: split_2 has no validation clips"
    assert tuning.automatic(one, tuning.survey_rows(one, None)) == tuning.TRIALS
    with pytest.raises(OptionError, match="validation clips that are not reported, and split_2 has no validation"):
        tuning.refuse(both, facts)


def test_columns_are_named_or_matched():
    rows = table().assign(splitting="no")
    assert choose_columns(["split_2", "split_*"], rows) == ["split_2", "split_1"]
    assert choose_columns(["split*"], rows) == ["split", *COLUMNS]
    with pytest.raises(OptionError, match=r"split_columns=fold_\*: no split column .* it has split, split_1, split_2"):
        choose_columns(["fold_*"], rows)
    with pytest.raises(OptionError, match="Unknown split column 'split1': did you mean 'split_1'"):
        choose_columns(["split1"], rows)
    with pytest.raises(OptionError, match="name at least one column"):
        choose_columns([], rows)
    people = [f"subject=train{i}" for i in range(4)]
    assert choose_columns(["split_1", "subject=*"], rows) == ["split_1", *people]
    assert choose_columns(["subject=*[01]", "subject=train3"], rows) == [people[0], people[1], people[3]]
    rows.loc[0, "subject"] = "*"
    assert choose_columns(["subject=*"], rows) == ["subject=*"]  # the value of that name
    with pytest.raises(
        OptionError, match=r"subject=p\*: no value of column subject is of that form; it has \* … train3"
    ):
        choose_columns(["subject=p*"], rows)
    with pytest.raises(OptionError, match="did you mean 'subject'"):
        choose_columns(["subjct=*"], rows)
    assert in_words([Replicate(f"s{i}", 0) for i in range(9)]) == "1 seed × 9 splits (s0 … s8)"
    with pytest.raises(OptionError, match="split_column and split_columns both say"):
        kdcache.ablate("early", shards="nowhere", split_columns=["split_1"], split="split_2")


def test_each_value_has_a_folder_of_its_own(tmp_path):
    names = ["split_1", "old name", "who=S1", "who=a b", "who=a-b", "who=a/b", "who=../../x", "who=" + "é" * 300]
    folders = [row_folder(tmp_path, "row", name) for name in names]
    assert [f.name for f in folders[:3]] == ["split_1", "old-name", "who=S1"]
    assert len(set(folders)) == len(names)
    assert all(f.parent == tmp_path / "row" for f in folders)
    for folder in folders:
        folder.mkdir(parents=True)


def test_leaving_one_subject_out(shards, tmp_path):
    """Every row once for each subject: tested on that subject alone, tuned without it; runs open and fuse as others."""
    call = ["ablate", "early", f"--shards={shards}", "--row=plain:alpha=0", "--row=knn:model=knn", "--device=cpu"]
    call += [f"--set={k}={v[0] if isinstance(v, tuple) else v}" for k, v in QUICK.items() if k != "device"]
    out = tmp_path / "out"
    short = ["--min-steps=1", "--widen=0"]
    told = CliRunner().invoke(
        main, [*call, "--split-columns=subject=*", "--seeds=1", "--tune=2", *short, f"--out={out}"]
    )
    assert told.exit_code == 0, told.output
    people = [f"subject=train{i}" for i in range(4)]
    assert "Test, best on validation, 1 seed × 4 splits (subject=train0 … subject=train3)" in told.output
    assert "| plain | subject=train2 |" in told.output
    subject = table().set_index("clip_id")["subject"]
    results = pd.read_csv(out / "results.csv")
    assert list(dict.fromkeys(results["split_column"])) == people
    for name in people:
        run = Run(out / "plain" / name / "seed-0")
        predicted = run.predictions()
        assert set(subject[predicted["clip_id"][predicted["split"] == "test"]]) == {name.partition("=")[2]}
        assert run.settings.split_column == name
        assert kdcache.evaluate(run.path, "test")["last"] == {"test": run.metrics["last"]["test"]}
    first, second = (out / "plain" / people[i] / "seed-0" for i in (0, 1))
    assert fuse([first, out / "knn" / people[0] / "seed-0"])["test"]["auc"] > 0
    with pytest.raises(OptionError, match="holds out other clips"):
        fuse([first, second])
    again = kdcache.train(**json.loads((out / "ablation.json").read_text())["rows"][0]["arguments"], out=first)
    assert again.metrics == Run(first).metrics
    sets = ["--set=model=knn", "--set=split_column=subject=train1"]
    alone = CliRunner().invoke(
        main, ["train", "early", f"--shards={shards}", f"--out={tmp_path / 'run'}", "--device=cpu", *sets]
    )
    assert alone.exit_code == 0, alone.output
    knn = results[(results["row"] == "knn") & (results["split_column"] == people[1]) & (results["split"] == "test")]
    measured = Run(tmp_path / "run").metrics["last"]["test"]["label"]["auc"]
    assert knn[(knn["weights"] == "last") & (knn["metric"] == "auc")]["value"].item() == pytest.approx(
        measured, abs=1e-3
    )


def test_the_command_takes_columns_and_patterns(shards, tmp_path):
    call = ["ablate", "early", f"--shards={shards}", "--row=knn:model=knn", "--seeds=1", "--tune=0", "--device=cpu"]
    result = CliRunner().invoke(main, [*call, "--split-columns=split_1, split_2", f"--out={tmp_path / 'named'}"])
    assert result.exit_code == 0, result.output
    assert "1 seed × 2 splits" in result.output
    assert (tmp_path / "named" / "knn" / "split_2" / "seed-0" / "metrics.json").exists()
    refused = CliRunner().invoke(main, [*call, "--split-columns=spilt_1", f"--out={tmp_path / 'wrong'}"])
    assert refused.exit_code == 1
    assert "did you mean 'split_1'" in refused.output
    assert not (tmp_path / "wrong").exists()


def test_the_old_name_of_the_option_still_works(shards, tmp_path, caplog):
    call = ["ablate", "early", f"--shards={shards}", "--row=knn:model=knn", "--seeds=1", "--tune=0", "--device=cpu"]
    result = CliRunner().invoke(main, [*call, "--splits=split_1", f"--out={tmp_path / 'old'}"])
    assert result.exit_code == 0, result.output
    assert "splits is now called split_columns" in caplog.text
    assert (tmp_path / "old" / "knn" / "split_1" / "seed-0" / "metrics.json").exists()
    assert "--splits" not in CliRunner().invoke(main, ["ablate", "--help"]).output


def test_classes_without_a_training_clip_are_named(caplog):
    table = pd.DataFrame({"label": ["0", "1", "2"], "subject": list("abc"), "split": ["train"] * 3}, index=list("xyz"))
    split = assign_splits(table, 0.2, ("subject",))
    lost = table["label"][split == "validation"].tolist()
    assert len(lost) == 1
    assert f"holding clips out leaves no training clip of label {lost[0]}" in caplog.text


def test_splits_of_other_names_are_counted_by_name(caplog):
    named = ["trian"] * 3 + ["Test"] + ["train"] * 4 + ["val", "test", "test_s1", ""]
    made = clips(clips_cache.rows(12, 0).assign(split=named), np.ones(12, bool), 0.2)
    assert {name: len(split) for name, split in made.splits.items() if name in ("train", *HELD_OUT)} == {
        "train": 4,
        "validation": 1,
        "test": 1,
    }
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith("column split: 'Test' (1), 'trian' (3): ")
    assert told.endswith("so 4 of 12 examples neither train nor are scored")
    caplog.clear()
    named = ["train"] * 8 + ["val", "test", "test_s1", ""]  # EPIC's own test sets, and clips put aside
    clips(clips_cache.rows(12, 0).assign(split=named), np.ones(12, bool), 0.2)
    assert not caplog.text


def test_tested_classes_that_no_training_clip_has_are_counted(caplog):
    """Of 36 clips the twelve of label 10 are tested; clips of that class that train are unlabelled."""
    rows = clips_cache.rows(36, 0)
    made = clips(split_by(rows, "label=10"), np.ones(36, bool), 0)
    warn_of_unseen_classes(made)
    assert "test examples: 12 of 12 are of 1 class of label (10) that no labelled training example has" in caplog.text
    caplog.clear()
    rows = clips_cache.rows(24, 6, 3, unlabelled=6)
    rows.loc[rows["split"].eq("train") & rows["label"].eq(20), "label"] = None
    warn_of_unseen_classes(clips(rows, np.ones(len(rows), bool), 0))
    assert "test examples: 2 of 6 are of 1 class of label (20)" in caplog.text
    caplog.clear()
    warn_of_unseen_classes(clips(clips_cache.rows(24, 6, 3), np.ones(33, bool), 0))
    assert not caplog.text


def test_a_training_warns_of_classes_that_it_cannot_name(shards, tmp_path, caplog):
    kdcache.train("early", shards, out=tmp_path / "run", model="knn", device="cpu", split_column="label=10")
    assert caplog.text.count("that no labelled training example has") == 1
