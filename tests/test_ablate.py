"""Comparisons of rows: which rows there are, fair tuning that never sees test clips, tables, tests, pictures."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import clips_cache
import numpy as np
import pairs_cache
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from unsealed import unsealed
from worker_cases import FatalTraining

import kdcache
from kdcache.cli import main
from kdcache.cluster.options import Cluster
from kdcache.engine import loop
from kdcache.errors import KdcacheError, OptionError
from kdcache.files import temporary_name
from kdcache.metrics.early import measure_levels
from kdcache.metrics.significance import compare
from kdcache.report import ablation as report
from kdcache.report.tables import markdown, paper_section, results_table, shown_metrics, steps_line
from kdcache.runs.ablation import pool, tuning
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.conclusion import conclude
from kdcache.runs.ablation.pool import Job, Pool, run_jobs
from kdcache.runs.ablation.rows import Comparison, choose_rows, parse_grid, parse_row, parse_rows
from kdcache.runs.presets import TableRow
from kdcache.runs.train import Run

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 3, "milestones": (2,), "batch_size": 8, "hidden": 8, "teacher_hidden": 4, "device": "cpu"}
SHORT = {"min_steps": 1, "widen": 0}  # trials as short as the settings are, and no more of them
ROWS: dict[str, dict[str, Any]] = {"neither": {"alpha": 0, "beta": 0}, "both": {}, "knn": {"model": "knn"}}
NOISE = 4.0


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Clips of five levels with validation and test clips."""
    return clips_cache.cache(tmp_path_factory.mktemp("cache"), train=24, validation=18, test=12, noise=NOISE)


@pytest.fixture(scope="module")
def compared(shards, tmp_path_factory):
    """Three rows, two seeds, two trials each."""
    out = tmp_path_factory.mktemp("ablations") / "early"
    return kdcache.ablate("early", shards=shards, rows=ROWS, seeds=2, tune=2, out=out, **SHORT, **QUICK)


# Which rows there are


def test_rows_of_a_table_carry_preset_options_and_the_papers_numbers():
    table = choose_rows("early", "table1-sysu", {}, {}, None, {"epochs": 2})
    assert table.columns == ["20", "40", "60", "80", "100", "AUC"]
    by_name = {row.name: row for row in table.rows}
    ours = by_name["With distillation"]
    assert ours.options == {"beta": 1.0, "batch_size": 32, "epochs": 2}
    assert ours.paper["AUC"] == 78.8
    assert by_name["Without distillation"].options["alpha"] == 0
    assert by_name["TS-LSTM"].quoted
    assert by_name["TS-LSTM"] not in table.runnable
    assert len({row.slug for row in table.runnable}) == len(table.runnable)


def test_a_grid_is_the_product_of_its_values_on_every_row():
    common, grid = parse_grid("early", ["alpha=0,0.5", "beta=0,1", "epochs=4", "milestones=2,3"])
    assert common == {"epochs": 4, "milestones": (2, 3)}
    assert grid == {"alpha": [0.0, 0.5], "beta": [0.0, 1.0]}
    rows = choose_rows("early", None, {}, grid, None, common).rows
    assert [row.name for row in rows] == [f"alpha={a}, beta={b}" for a in ("0", "0.5") for b in ("0", "1")]
    assert rows[1].options == {"alpha": 0.0, "beta": 1.0, "epochs": 4, "milestones": (2, 3)}
    two = choose_rows("early", None, {"a": {}, "b": {"tau": 2}}, {"beta": [0.0, 1.0]}, "sysu", {})
    assert [row.name for row in two.rows] == ["a, beta=0", "a, beta=1", "b, beta=0", "b, beta=1"]
    assert two.rows[3].options == {"batch_size": 32, "beta": 1.0, "tau": 2}


def test_a_grid_takes_the_names_of_version_0_1():
    assert parse_grid("early", ["hold=0,0.5", "split=split_2"]) == (
        {"split_column": "split_2"},
        {"memory_fraction": [0.0, 0.5]},
    )


def test_a_row_in_words():
    assert parse_row("early", "L_ts: alpha=0.5, beta=0") == ("L_ts", {"alpha": 0.5, "beta": 0.0})
    assert parse_row("early", "slow:milestones=15,25,epochs=30") == ("slow", {"milestones": (15, 25), "epochs": 30})
    assert parse_row("early", "defaults:") == ("defaults", {})
    assert parse_rows("early", ["b:alpha=0", "a:"]) == {"b": {"alpha": 0.0}, "a": {}}


def test_what_is_given_twice_is_not_dropped():
    with pytest.raises(OptionError, match="--row 'a' is given twice: give each row its own name"):
        parse_rows("early", ["a:alpha=0", "b:", " a :alpha=1"])
    with pytest.raises(OptionError, match=r"--row 'a:alpha=0,beta=1,alpha=0.7': alpha is given twice"):
        parse_row("early", "a:alpha=0,beta=1,alpha=0.7")
    with pytest.raises(OptionError, match="--row 'a:hold=0,memory_fraction=1': memory_fraction is given twice"):
        parse_row("early", "a:hold=0,memory_fraction=1")  # an old name of the same
    for again in ("alpha=1", "alpha=1,2"):
        with pytest.raises(OptionError, match=f"--set {again}: alpha is given twice"):
            parse_grid("early", ["alpha=0", "beta=0,1", again])


def test_rows_with_like_names_have_folders_of_their_own():
    rows = choose_rows("anticipation", "table1", {}, {}, None, {}).runnable
    assert len({row.slug for row in rows}) == len(rows) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "table9"}, "did you mean 'table"),
        ({"rows": {"a": {"alfa": 1.0}}}, "Row 'a': .*did you mean 'alpha'"),
        ({"rows": {"a": {"alpha": "much"}}}, "Row 'a': alpha='much'"),
        ({"table": "table2", "rows": {"a": {}}}, "give either TABLE"),
        ({"rows": {"a": {}}, "against": "b"}, "Unknown row 'b'"),
        ({"rows": {"a": {}}, "grid": {"hold": [7.0]}}, "memory_fraction=7.0"),
        ({"seeds": 0}, "seeds=0: give 1 or more"),
        ({"grid": {"lr": [0.1, 0.2]}, "tune": 2}, "lr differs between rows, but tune chooses it"),
        ({"grid": {"alpha": [0.5, 0.5]}}, "Two rows are called"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_trained(tmp_path, arguments, message):
    with pytest.raises(OptionError, match=message):
        kdcache.ablate("early", shards=tmp_path / "nothing", out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


# Tuning


def test_final_runs_use_what_the_trials_chose_on_validation_clips(compared):
    tuned = compared.tuning
    assert list(tuned["row"]) == ["teacher of both"] * 2 + ["neither"] * 2 + ["both"] * 2 + ["knn"] * 2
    assert tuned.groupby("row")["chosen"].sum().eq(1).all()
    (teacher,) = (
        json.loads(row["settings"]) for row in tuned.to_dict("records") if row["chosen"] and "of" in row["row"]
    )
    scores = {}
    for path in compared.path.glob("*/tuning/*/seed-1000"):
        run = Run(path)
        which = "last" if run.options.model == "teacher" else "best@validation"  # what a teacher hands on
        found = run.metrics[which]["validation"]["label"]["auc"]
        scores.setdefault(path.parts[-4], []).append(found)
    for row in tuned.to_dict("records"):
        slug = row["row"].replace(" ", "-")
        assert row["score"] in scores[slug]
        assert len(scores[slug]) == 2
        if row["chosen"] and row["row"] in ROWS:
            settings = json.loads(row["settings"])
            for seed in (0, 1):
                final = Run(compared.path / slug / f"seed-{seed}")
                wanted = final.options
                assert all(getattr(wanted, n) == (tuple(v) if isinstance(v, list) else v) for n, v in settings.items())
                assert final.settings.seed == seed
                assert wanted.teacher_seed == 0
    both = Run(compared.path / "both" / "seed-0").options
    assert teacher.get("teacher_epochs", 3) == both.teacher_epochs
    lengths = {Run(compared.path / row / "seed-0").options.epochs for row in ("neither", "both")}
    assert len(lengths) == 1
    assert lengths <= {3, 6, 12}


def test_labels_of_test_clips_cannot_change_what_is_chosen(compared, tmp_path):
    """The same features with the labels of test clips turned round: every choice stays, every test number moves."""
    table = clips_cache.rows(24, 12, 18)
    turned = table.copy()
    test = turned["split"] == "test"
    turned.loc[test, "label"] = (turned.loc[test, "label"] + 10) % 30
    vectors = {clips_cache.STREAM: clips_cache.arrays(table, noise=NOISE)}
    folder = clips_cache.write(tmp_path / "cache", turned, vectors)
    again = kdcache.ablate("early", shards=folder, rows=ROWS, seeds=2, tune=2, out=tmp_path / "out", **SHORT, **QUICK)
    pd.testing.assert_frame_equal(again.tuning, compared.tuning)
    mine, theirs = (a.results.set_index([*a.results.columns[:-1]])["value"] for a in (again, compared))
    on_validation = mine.index.get_level_values("split") == "validation"
    pd.testing.assert_series_equal(mine[on_validation], theirs[on_validation])  # epochs are in the index
    assert not np.allclose(mine[~on_validation], theirs[~on_validation])


def test_without_validation_clips_nothing_is_selected(tmp_path, monkeypatch):
    folder = clips_cache.cache(tmp_path / "cache", train=12, test=6, noise=NOISE)
    call = {"shards": folder, "rows": ROWS, "validation": 0.0, **QUICK, "epochs": 1, "milestones": ()}
    with pytest.raises(OptionError, match="that are not reported, and the cache has no validation clips"):
        kdcache.ablate("early", tune=2, out=tmp_path / "tuned", **call)
    assert not (tmp_path / "tuned").exists()  # before anything is trained
    result = kdcache.ablate("early", seeds=1, out=tmp_path / "plain", **call)  # tuned by default only where it can be
    assert result.tuning.empty
    assert set(result.results["weights"]) == {"last"}  # an epoch chosen on test clips is no result
    assert set(result.tests["weights"]) == {"last"}
    assert "no validation clips, so no epoch was selected" in result.text
    conclusion = conclude(tmp_path / "plain")
    for row in ROWS:  # whichever is best on test clips, the plots show the last row
        better = conclusion.results.copy()
        better.loc[better["row"] == row, "value"] = 100.0
        assert report.shown_row(replace(conclusion, results=better)).name == "knn"


def test_a_row_without_validation_clips_leaves_the_best_epoch_of_the_others_aside(tmp_path):
    folder = clips_cache.cache(tmp_path / "cache", train=24, test=6, noise=NOISE)
    rows = {"held": ROWS["neither"], "all": ROWS["neither"] | {"validation": 0.0}}
    call = {"shards": folder, "rows": rows, **QUICK, "epochs": 1, "milestones": ()}
    with pytest.raises(OptionError, match="and row 'all' has no validation clips"):
        kdcache.ablate("early", tune=2, out=tmp_path / "tuned", **call)
    result = kdcache.ablate("early", seeds=2, out=tmp_path / "plain", **call)
    assert set(result.tests["weights"]) == {"last"}
    assert "best on validation" not in result.text
    assert "Not every run has validation clips, so no epoch was selected" in result.text


def test_rows_are_tuned_by_default_unless_they_differ_in_what_is_tuned(shards, caplog):
    caplog.set_level("INFO", "kdcache")
    common = {"method": "early", "shards": str(shards), "device": "cpu", "precision": "auto", "stream": None}
    quick = {name: value for name, value in QUICK.items() if name != "device"}
    calls = Calls(comparison=choose_rows("early", None, ROWS, {}, None, quick), common=common)
    assert tuning.automatic(calls, tuning.survey_rows(calls, None)) == tuning.TRIALS == 16
    assert "tune=16: each row gets 16 trials of learning rate, length and what its objective adds" in caplog.text
    differing = choose_rows("early", None, {}, {"lr": [0.1, 1.0]}, None, quick)
    assert tuning.automatic(Calls(comparison=differing, common=common), None) == 0
    assert caplog.messages[-1] == "not tuned: lr differs between rows"


def test_a_trial_that_diverges_is_not_chosen_and_all_of_them_are_an_error(shards, tmp_path, monkeypatch):
    original = loop.still_finite

    def diverge(run):
        original(run)
        if run.stage.optimizer.param_groups[0]["initial_lr"] < limit:
            raise OptionError("L_cls is nan: lower lr")

    monkeypatch.setattr(loop, "still_finite", diverge)
    call = {
        "shards": shards,
        "rows": {"neither": ROWS["neither"]},
        "seeds": 1,
        "tune": 5,
        **SHORT,
        **QUICK,
        "epochs": 1,
    }
    limit = 0.005
    result = kdcache.ablate("early", out=tmp_path / "one", **call)
    failed = result.tuning["lr"] < limit
    assert failed.any()
    assert (result.tuning["score"].isna() == failed).all()
    assert result.tuning["problem"].str.contains("lower lr").tolist() == failed.tolist()
    assert not (result.tuning["chosen"] & failed).any()
    limit = 1.0
    with pytest.raises(OptionError, match="neither: every trial failed, the first with: L_cls is nan"):
        kdcache.ablate("early", out=tmp_path / "all", **call)


@pytest.mark.parametrize("tune", [0, 2])
def test_a_row_that_fails_is_named_and_the_others_are_compared(shards, tmp_path, tune):
    rows = {"neither": ROWS["neither"], "late": {"tau": 50}, "both": {}}
    call = {"shards": shards, "seeds": 2, "tune": tune, **SHORT, **QUICK, "epochs": 1, "milestones": ()}
    result = kdcache.ablate("early", rows=rows, out=tmp_path / "out", **call)
    assert list(result.failed) == ["late"]
    assert "tau=50: clips have 5 levels" in result.failed["late"]
    assert set(result.results["row"]) == {"neither", "both"}
    assert list(dict.fromkeys(result.tests["row"])) == ["both"]
    assert "| **late** (failed) |" in result.text
    assert "**late failed** and is not compared" in result.text
    assert report.write_report(conclude(result.path)) == result.text
    with pytest.raises(OptionError, match=r"late: .*tau=50.*The other rows are tested against it"):
        kdcache.ablate("early", rows=rows, out=tmp_path / "other", against="late", **call)
    command = [
        "ablate",
        "early",
        "--shards",
        str(shards),
        "--out",
        str(tmp_path / "cli"),
        "--seeds",
        "1",
        "--tune",
        "0",
    ]
    sets = [f"--set={name}={value}" for name, value in {**QUICK, "epochs": 1, "milestones": ""}.items()]
    rows_given = ["--row", "neither:alpha=0,beta=0", "--row", "late:tau=50"]
    done = CliRunner().invoke(main, [*command, *(s for s in sets if "device" not in s), "--device", "cpu", *rows_given])
    assert done.exit_code == 3, done.output


# Results


def test_results_are_those_of_the_runs(compared):
    stored = pd.read_csv(compared.path / "results.csv")
    assert list(stored.columns) == [
        "row",
        "split_column",
        "draw",
        "seed",
        "weights",
        "epoch",
        "steps",
        "split",
        "metric",
        "value",
    ]
    assert len(stored) == 3 * 2 * 2 * 2 * 7  # rows, seeds, weights, splits, metrics
    for row in compared.results.to_dict("records"):
        metrics = Run(compared.path / row["row"] / f"seed-{row['seed']}").metrics
        key = {"last": "last", "best": "best@validation"}[row["weights"]]
        assert metrics[key][row["split"]]["label"][row["metric"]] == row["value"]
        assert metrics["epochs"][row["weights"]] == row["epoch"]


def test_tests_are_paired_by_seed(compared):
    found = compared.tests.set_index(["row", "weights"])
    assert set(found.index) == {(r, w) for r in ("both", "knn") for w in ("best", "last")}
    r = compared.results
    for (row, weights), test in found.iterrows():
        kept = r[(r["weights"] == weights) & (r["split"] == "test") & (r["metric"] == "auc")]
        a, b = (kept[kept["row"] == name].sort_values("seed")["value"].tolist() for name in ("neither", row))
        expected = compare([np.subtract(b, a)], 2)
        assert (test["difference"], test["std_seeds"]) == (expected.difference, expected.std_seeds)
        assert (test["units"], test["runs"], test["against"]) == (1, 2, "neither")
        assert np.isnan([test["low"], test["high"], test["p"], test["p_sign_flips"]]).all()  # one draw: no test
    assert "nothing about other draws: there is no interval and no test" in compared.text
    assert "Mean ± std over 2 seeds of one draw:" in compared.text


def test_scores_are_those_that_the_metrics_came_from(compared):
    run = Run(compared.path / "both" / "seed-1")
    probs, y, classes = report.scores(run, "best", "test")
    assert probs.shape == (12, 5, 3)
    assert classes == [0, 10, 20]
    measured = measure_levels(probs, y)
    assert measured == pytest.approx(run.metrics["best@validation"]["test"]["label"])


def test_the_papers_numbers_stand_apart_from_the_results():
    rows = [TableRow("A", {}, {"AUC": 50.0}), TableRow("B", {}, {"AUC": 40.0}, quoted=True), TableRow("C", {}, {})]
    wanted = Comparison("early", "", ["40", "AUC"], rows)
    known = {"weights": "best", "split_column": "split", "split": "test", "steps": 12}
    found = pd.DataFrame(
        [
            {"row": row, "draw": 0, "seed": seed, "epoch": 4, "metric": metric, "value": value + seed, **known}
            for row, metric, value in (("A", "acc40", 30), ("A", "auc", 51), ("C", "acc40", 33), ("C", "auc", 60))
            for seed in range(3)
        ]
    )
    shown = shown_metrics(wanted, ["auc", "acc40"], "label", "auc")
    assert shown == {"40": "acc40", "AUC": "auc"}
    assert results_table(wanted, found, shown, "best", "test") == [
        "| row | epoch | steps | 40 | AUC |",
        "| --- | --- | --- | --- | --- |",
        "| **A** | 4 | 12 | 31.0 ± 1.0 | 52.0 ± 1.0 |",
        "| **C** | 4 | 12 | 34.0 ± 1.0 | 61.0 ± 1.0 |",
    ]
    text = paper_section(wanted, found, shown, "best", "test")
    assert "of the paper's own data set" in text[2]
    assert text[4:] == [
        "| row | 40 | AUC |",
        "| --- | --- | --- |",
        "| A |  | 50.0 |",
        "| ↳ ours − paper |  | +2.0 |",
        "| B (quoted, not run) |  | 40.0 |",
    ]


@pytest.mark.parametrize(
    ("steps", "cells", "words"),
    [
        ({"neither": 9, "both": 9, "knn": 0}, ["9", "9", "0"], None),
        ({"neither": 9, "both": 18, "knn": 0}, ["9", "18", "0"], "unequal numbers of steps (column steps"),
        ({"neither": None, "both": None, "knn": None}, ["–", "–", "–"], "before steps were recorded"),
    ],
)
def test_tables_say_how_many_steps_each_row_took(compared, tmp_path, steps, cells, words):
    folder = shutil.copytree(compared.path, tmp_path / "out")
    for row, count in steps.items():
        paths = [p for name in ("metrics.json", "student/summary.json") for p in (folder / row).glob(f"seed-*/{name}")]
        for path in map(unsealed, paths):
            content = {k: v for k, v in json.loads(path.read_text()).items() if k != "steps"}
            path.write_text(json.dumps(content | ({} if count is None else {"steps": count})))
    conclusion = conclude(folder)
    text = markdown(conclusion)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| **")]
    assert [line[2] for line in rows] == cells * 2
    assert ("Warning" in text) == (words is not None and "unequal" in words)
    assert "a teacher's are not counted" in text
    assert words is None or words in text
    stored = pd.read_csv(folder / "results.csv").groupby("row")["steps"].unique()
    assert all(np.isnan(stored[row]).all() if n is None else stored[row].tolist() == [n] for row, n in steps.items())


def test_steps_that_differ_between_splits_alone_are_no_cause_for_a_warning():
    wanted = Comparison("early", "", [], [TableRow("A", {}, {}), TableRow("B", {}, {})])
    found = pd.DataFrame(
        [{"row": row, "split_column": f"s{s}", "draw": 0, "seed": 0, "steps": 500 + s} for row in "AB" for s in (0, 1)]
    )
    assert steps_line(wanted, found).endswith("a teacher's are not counted.")
    assert "Fewer than 500 can make a row" in steps_line(wanted, found.assign(steps=found["steps"] - 1))
    found.loc[0, "steps"] = 12
    assert "Warning" in steps_line(wanted, found)


@pytest.mark.parametrize(
    ("paper", "metrics", "shown"),
    [
        (["20", "AUC"], ["auc", "acc20"], {"20": "acc20", "AUC": "auc"}),
        ([], ["auc", "auc_trapezoid", "acc33", "acc67", "acc100"], ["33", "67", "100", "AUC"]),
        ([], ["auc", *(f"acc{p}" for p in range(10, 101, 10))], ["20", "40", "60", "80", "100", "AUC"]),
        (["verb"], ["top1", "top5"], {"verb": "top1"}),
        (["rgb", "flow"], ["top1", "top5"], {"top1": "top1", "rgb": None, "flow": None}),
        ([], ["f1", "top1"], {"f1": "f1"}),
    ],
)
def test_columns_find_their_metrics(paper, metrics, shown):
    found = shown_metrics(Comparison("early", "", paper, []), metrics, "verb", metrics[0])  # the first selects epochs
    assert found == shown if isinstance(shown, dict) else list(found) == shown


def test_the_folder_holds_all_that_was_promised(compared):
    names = {p.name for p in compared.path.iterdir()}
    tables = {"table.md", "results.csv", "tests.csv", "cost.csv", "tuning.csv", "ablation.json"}
    plots = {"effects.png", "curve.png", "training.png", "gain.png", "confusion.png"}
    assert names == tables | plots | {"stages", "teacher-of-both", *ROWS}
    assert (compared.path / "table.md").read_text() == compared.text
    assert str(compared).replace(" ", "").replace("-", "") == compared.text.replace(" ", "").replace("-", "")
    assert "Selected from 2 trials by auc" in compared.text
    assert "Set for all rows: batch_size=8, hidden=8, teacher_hidden=4." in compared.text
    assert "Where tuning started: epochs=3, milestones=2." in compared.text
    for name in ("effects", "curve", "training", "gain", "confusion"):
        with Image.open(compared.path / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, name
    stored = json.loads((compared.path / "ablation.json").read_text())
    arguments = stored["rows"][0]["arguments"]
    assert kdcache.train(**arguments, out=stored["rows"][0]["folder"]).metrics  # found finished, with equal settings


def test_what_is_finished_is_not_trained_again_and_teachers_are_shared(compared, shards, monkeypatch):
    teachers = list((compared.path / "stages").iterdir())
    assert len(teachers) == 2 + 1  # one a trial of its own; one for the trials, rows and seeds that have it
    kept = {(p / "best.safetensors").read_bytes() for p in teachers}
    assert (compared.path / "both" / "seed-0" / "teacher" / "best.safetensors").read_bytes() in kept
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("trained again"))
    again = kdcache.ablate("early", shards=shards, rows=ROWS, seeds=2, tune=2, out=compared.path, **SHORT, **QUICK)
    assert again.text == compared.text
    pd.testing.assert_frame_equal(again.tuning, compared.tuning)
    pd.testing.assert_frame_equal(again.results, compared.results)


# Other methods, processes, the command


def test_methods_without_levels_are_compared_by_top1(tmp_path):
    shards = pairs_cache.cache(tmp_path / "cache", 24)
    quick = {"epochs": 1, "milestones": (), "head": "light", "width": 8, "device": "cpu", "data": "S"}
    grid = {"loss_d": ["none", "both"]}
    result = kdcache.ablate("anticipation", shards=shards, grid=grid, seeds=1, tune=0, out=tmp_path / "out", **quick)
    assert set(result.tests["metric"]) == {"top1"}
    assert "| row | epoch | steps | top1 |" in result.text
    assert "no test clips" in result.text
    assert "Not tuned" in result.text
    assert not (tmp_path / "out" / "curve.png").exists()
    assert (tmp_path / "out" / "gain.png").exists()


def test_processes_get_the_same_numbers_tell_of_failures_and_keep_checkpoints_when_ended(shards, tmp_path):
    common = {"method": "early", "shards": str(shards), **QUICK, "epochs": 1, "milestones": ()}
    # The endless one comes first: it is under way, whichever order the ends of the others are told in.
    sets = [{**ROWS["neither"], "epochs": 10**6}, ROWS["neither"], {"tau": 50}, {}]
    jobs = [
        [Job(f"job {i}", tmp_path / f"{workers}-{i}", {**common, **s, "seed": i}) for i, s in enumerate(sets)]
        for workers in (1, 2)
    ]
    told: list[dict[str, str]] = [{}, {}]
    run_jobs(jobs[0][1:], Pool(), tmp_path / "stages", lambda job, problem: told[0].update({job.label: problem}))

    class EnoughError(Exception):
        pass

    def listen(job: Job, problem: str) -> None:
        told[1][job.label] = problem
        if len(told[1]) == 3:
            deadline = time.monotonic() + 60
            while not (tmp_path / "2-0" / "metrics.csv").exists() and time.monotonic() < deadline:
                time.sleep(0.01)  # until the endless one has trained an epoch
            raise EnoughError

    with pytest.raises(EnoughError):
        run_jobs(jobs[1], Pool(2), tmp_path / "stages", listen)
    assert told[0] == told[1]
    assert told[1] == {"job 1": "", "job 2": told[1]["job 2"], "job 3": ""}
    assert "tau=50: clips have 5 levels" in told[1]["job 2"]
    for i in (1, 3):
        assert Run(tmp_path / f"1-{i}").metrics["last"] == Run(tmp_path / f"2-{i}").metrics["last"]
    assert (tmp_path / "2-0" / "student" / "state.pt").exists()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("threads", "message"),
    [
        (1, r"^The process that trained job \d died \(killed by signal 9\): check the free memory"),
        (None, "^A process died"),
    ],
)
def test_a_process_that_dies_is_named(shards, tmp_path, monkeypatch, threads, message):
    monkeypatch.setattr(pool, "TrainingWork", lambda stages, *_: FatalTraining(stages, threads))
    common = {"method": "early", "shards": str(shards), "seed": 0}
    jobs = [Job(f"job {i}", tmp_path / str(i), common) for i in range(2)]
    with pytest.raises(KdcacheError, match=message):
        run_jobs(jobs, Pool(2), tmp_path / "stages", lambda *_: None)
    assert not multiprocessing.active_children()


def test_a_worker_imports_no_torch_before_it_has_its_process_group():
    code = "import sys, kdcache.runs.ablation.pool; print('torch' in sys.modules, 'pandas' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["False", "False"]


def test_the_command_prints_the_table(shards, tmp_path):
    sets = [f"--set={k}={v[0] if isinstance(v, tuple) else v}" for k, v in QUICK.items() if k != "device"]
    call = ["ablate", "early", f"--shards={shards}", "--seeds=1", f"--out={tmp_path / 'out'}", "--device=cpu"]
    call += ["--tune=2", "--min-steps=1", "--widen=0"]
    result = CliRunner().invoke(main, [*call, "--row=neither:alpha=0,beta=0", *sets])
    assert result.exit_code == 0, result.output
    assert "| **neither** |" in result.output
    assert str(tmp_path / "out") in result.output
    refused = CliRunner().invoke(main, [*call, "--row=alpha=0"])
    assert refused.exit_code == 1
    assert "write name:option=value" in refused.output


def test_what_killed_calls_had_begun_to_write_is_removed(shards, tmp_path, monkeypatch):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / temporary_name("results.csv").replace(f".{os.getpid()}.", f".{dead.pid}.")
    left.write_bytes(b"half")
    monkeypatch.setattr(report, "train_rows", lambda protocol: (_ for _ in ()).throw(OptionError("enough")))
    with pytest.raises(OptionError, match="enough"):
        kdcache.ablate("early", shards=shards, rows=ROWS, out=tmp_path, **QUICK)
    assert not left.exists()


def test_a_cache_that_is_missing_here_is_not_asked_of_the_nodes(tmp_path, monkeypatch):
    """Else a mistyped folder is taken for one that the nodes do not share; all draws' caches must be seen there."""
    (tmp_path / "draw-0").mkdir()
    (tmp_path / "draw-1").mkdir()
    names = ["draw-1", "draw-0", "missing", "draw-0"]
    jobs = [
        Job(str(number), tmp_path / str(number), {"method": "early", "shards": tmp_path / name})
        for number, name in enumerate(names)
    ]
    asked: list[Any] = []

    class Actors:
        def __init__(self, connection: Any, work: Any, *others: Any, **options: Any) -> None:
            asked.extend(work.shared)

        def run(self, *arguments: Any) -> None: ...

    monkeypatch.setattr(pool, "connected", lambda *_: contextlib.nullcontext(SimpleNamespace(sharing=1)))
    monkeypatch.setattr(pool, "RayActors", Actors)
    run_jobs(jobs, Pool(4, cluster=Cluster()), tmp_path / "stages", lambda job, problem: None)
    assert asked[0].parent == tmp_path / "stages"
    assert asked[1:] == [tmp_path / "draw-0", tmp_path / "draw-1"]
