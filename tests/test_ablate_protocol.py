"""The protocol of comparisons: draws, what is searched and how far, one length for all rows, retraining."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import clips_cache
import numpy as np
import pairs_cache
import pandas as pd
import pytest

import kdcache
from kdcache.data.splits import hold_out, split_by
from kdcache.errors import OptionError
from kdcache.methods.search import Knob, of_row
from kdcache.runs.ablation import tuning
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.conclusion import conclude
from kdcache.runs.ablation.groups import SearchGroup, groups_of_teachers
from kdcache.runs.ablation.replicates import Replicate
from kdcache.runs.ablation.rows import choose_rows
from kdcache.runs.ablation.space import (
    OF_ONE_STAGE,
    Dimension,
    RowGrid,
    base_of,
    exploring,
    length_dimension,
    rate_dimension,
)
from kdcache.runs.ablation.survey import RowSurvey
from kdcache.runs.ablation.trials import SearchedRow
from kdcache.runs.presets import TableRow
from kdcache.runs.train import Run, Session, train
from kdcache.store import reindex

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 1, "milestones": (), "batch_size": 8, "hidden": 8, "teacher_hidden": 4, "device": "cpu"}
SHORT = {"min_steps": 1, "widen": 0}
NEITHER = {"alpha": 0.0, "beta": 0.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Clips without named validation clips, of four subjects a split."""
    return clips_cache.cache(tmp_path_factory.mktemp("cache"), train=24, test=12, noise=4.0)


def calls_of(shards, rows, method="early", **more: Any) -> Calls:
    common = {"method": method, "shards": str(shards), "device": "cpu", "precision": "auto", "stream": None}
    quick = {name: value for name, value in QUICK.items() if name != "device"} if method == "early" else {}
    return Calls(comparison=choose_rows(method, None, rows, {}, None, quick), common=common, **more)


# The space


def test_the_base_length_takes_enough_steps_in_the_row_that_takes_the_fewest():
    base, shorter = base_of(OF_ONE_STAGE, 0.01, 30, (15, 25), [(30, 240), (30, 90), (30, 0)], 500)
    assert base.length == np.ceil(500 / 3) == 167  # the second row takes 3 steps an epoch; the third does not train
    assert shorter == 1.0
    assert base.settings({"lr": 0.1, "length": 2.0}) == {"lr": 0.1, "epochs": 334, "milestones": (167, 278)}
    long, shorter = base_of(OF_ONE_STAGE, 0.01, 300, (), [(300, 2400)], 500)
    assert (long.length, shorter) == (300, 63 / 300)
    assert length_dimension(shorter).knob.below == (0.5, 0.25)
    assert length_dimension(1.0).knob.below == ()


def test_sixteen_trials_cover_rates_and_lengths_evenly_and_never_repeat():
    base, _ = base_of(OF_ONE_STAGE, 0.01, 10, (), [(10, 500)], 500)
    lr, length = rate_dimension(0.01), length_dimension(1.0)
    assert lr.values == [0.001, 0.00316, 0.01, 0.0316, 0.1]
    drawn = RowGrid(base, [lr, length]).draw(100)
    assert len(drawn) == 15  # the whole grid, each point once
    for count in (1, 2, 4):
        knobs = [Dimension(Knob(f"w{n}", (1, 2, 3, 4, 5))) for n in range(count)]
        points = RowGrid(base, [lr, length, *knobs]).draw(15)
        assert all(2 <= [p["lr"] for p in points].count(value) <= 4 for value in lr.values)
        assert all(4 <= [p["length"] for p in points].count(value) <= 6 for value in length.values)
        assert len({json.dumps(p) for p in points}) == 15


def test_an_edge_is_one_where_more_would_make_sense():
    knob = Knob("w", (None, 0.1, 1.0), below=(0.01,))
    dimension = Dimension(knob)
    assert [dimension.edge(v) for v in (None, 0.1, 1.0, "text")] == ["", "low", "", ""]
    assert dimension.widen("low", 2) == 0.01
    assert dimension.values[0] == 0.01
    assert dimension.edge(0.1) == ""
    assert dimension.edge(0.01) == "low"  # as far as it goes, and said
    assert dimension.widen("low", 2) is None
    assert dimension.widen("high", 2) is None


def test_what_a_row_adds_is_searched_and_of_a_row_that_adds_nothing_the_baselines_own():
    from kdcache.methods import early

    def names(own=(), **options):
        made = early.Options(**options)
        return [knob.option for knob in of_row(early.KNOBS, made, frozenset(own))]

    assert names() == ["alpha", "beta", "tau", "w_cls"]
    assert names(alpha=0.0) == ["beta", "tau", "w_cls"]
    assert names(own=["beta"], beta=2.0) == ["alpha", "tau", "w_cls"]
    assert names(alpha=0.0, beta=0.0) == ["dropout", "weight_decay"]
    assert names(model="ts-lstm") == ["w_cls", "lam_mse", "lam_mmd"]
    assert names(model="rank-lstm") == ["lam_rank"]
    assert names(model="knn") == ["k", "observed"]


def group_of(scores) -> SearchGroup:
    """Two rows, A and B, whose trials score as ``scores(row, point)`` says."""
    base, _ = base_of(OF_ONE_STAGE, 0.01, 10, (), [(10, 500)], 500)
    lr, length = rate_dimension(0.01), length_dimension(1.0)
    group = SearchGroup("early", None, [], {"lr": lr, "length": length})
    options = SimpleNamespace(lr=0.01, epochs=10, milestones=())
    for name in "AB":
        grid = RowGrid(base, [lr, length])
        group.members.append(SearchedRow(TableRow(name, {}, {}), None, RowSurvey(options, 500), grid))

    def train(new):
        for trial in new:
            found = scores(trial.row.name, trial.point)
            member = next(m for m in group.members if m.row is trial.row)
            if found is not None:
                member.scores[trial.number] = found
        return new

    train(group.first(16))
    train(group.rest(16))
    while train(group.widened(16, 2)):
        pass
    return group


def test_half_of_the_trials_tell_the_length_and_the_others_are_made_at_it():
    group = group_of(lambda row, point: -abs(point["length"] - 2) - abs(np.log10(point["lr"] / 0.01)))
    for member in group.members:
        lengths = [trial.length for trial in member.trials]
        assert lengths[:9] == [1.0, 2.0, 4.0] * 3
        assert lengths[9:11] == [2.0, 2.0]  # where the grid has no more than five rates; the rest are at others
        assert len(lengths) == 15
        assert len({json.dumps(trial.settings) for trial in member.trials}) == len(member.trials)
    assert [exploring(count) for count in (1, 2, 4, 8, 12, 16, 32)] == [1, 2, 3, 3, 6, 9, 15]


def test_all_rows_take_one_length_and_the_one_that_is_best_over_rows():
    def scores(row, point):
        best = {"A": 1.0, "B": 4.0}[row]
        return -abs(np.log2(point["length"] / best)) - 10 * abs(np.log10(point["lr"] / 0.01))

    group = group_of(scores)
    assert group.length in (1.0, 2.0)
    assert {group.chosen(m).length for m in group.members} == {group.length}
    assert [group.chosen(m).point["lr"] for m in group.members] == [0.01, 0.01]


def test_an_edge_widens_the_space_for_all_rows_with_as_many_trials_each():
    group = group_of(lambda row, point: np.log10(point["lr"]) if row == "A" else -abs(np.log10(point["lr"] / 0.01)))
    a, b = group.members
    assert max(group.dimensions["lr"].values) == 1.0  # twice by half a decade, and not further
    assert group.dimensions["lr"].widened == {"low": 0, "high": 2}
    assert len(a.trials) == len(b.trials) == 15 + 2 * 3  # all that this grid has at the new rates
    assert a.edges(group.chosen(a)) == [("lr", "high")]
    assert b.edges(group.chosen(b)) == []


def test_a_length_at_which_a_row_always_fails_is_not_taken():
    group = group_of(lambda row, point: None if row == "B" and point["length"] > 1 else point["length"])
    assert group.length == 1.0
    nothing = group_of(lambda row, point: 1.0 if row == "A" else None)
    assert nothing.chosen(nothing.members[1]) is None


# Teachers


def test_rows_share_the_teacher_that_their_options_make(shards):
    rows = {
        "neither": NEITHER,
        "both": {},
        "L_ts": {"beta": 0.0},
        "TS": {"model": "ts-lstm"},
        "own": {"teacher_lr": 1.0},
    }
    calls = calls_of(shards, rows)
    facts = tuning.survey_rows(calls, None)
    assert {name: known.steps for (name, _), known in facts.items()} == dict.fromkeys(rows, 3)  # 18 clips of 24, by 8
    groups, of_row = groups_of_teachers(calls, facts, 1, lambda row, column: RowSurvey(facts["both", None].options, 3))
    assert [group.members[0].row.name for group in groups] == ["teacher of both, L_ts", "teacher of TS"]
    assert sorted(name for name, _ in of_row) == ["L_ts", "TS", "both"]
    assert groups[1].members[0].row.options["cell"] == "lstm"
    assert list(groups[0].dimensions) == ["lr", "length"]


@pytest.mark.parametrize("method", ["early", "anticipation"])
def test_a_teacher_with_a_seed_of_its_own_is_trained_once_for_all_seeds(shards, tmp_path, method):
    if method == "early":
        cache, options, stage = shards, QUICK, "teacher"
    else:
        cache, stage = pairs_cache.cache(tmp_path / "cache", 24), "recognition"
        options = {"epochs": 1, "milestones": (), "head": "light", "width": 8, "device": "cpu", "batch_size": 8}
    weights = {}
    for seed in (0, 1):
        for own in (None, 0):
            session = Session(stages=tmp_path / "stages", bars=False)
            run = train(
                method, cache, seed, out=tmp_path / f"{seed}-{own}", session=session, teacher_seed=own, **options
            )
            weights[seed, own] = (run.path / stage / "last.safetensors").read_bytes()
    assert weights[0, 0] == weights[1, 0] == weights[0, None] != weights[1, None]
    again = train(method, cache, 1, out=tmp_path / "alone", teacher_seed=0, **options)  # without sharing: the same
    assert (again.path / stage / "last.safetensors").read_bytes() == weights[0, 0]


# Draws


def test_draws_vary_labels_and_validation_groups_and_share_one_teacher(shards, tmp_path):
    rows = {"neither": NEITHER, "L_ts": {"beta": 0.0}}
    call = {"shards": shards, "rows": rows, "seeds": 2, "draws": 2, "tune": 0, "label_fraction": 0.5, **QUICK}
    done = kdcache.ablate("early", out=tmp_path, **call)
    for draw in (0, 1):
        for seed in (0, 1):
            run = Run(tmp_path / "l-ts" / f"draw-{draw}" / f"seed-{seed}")
            assert (run.settings.validation_seed, run.options.label_seed, run.options.teacher_seed) == (draw, draw, 0)
    assert len(list((tmp_path / "stages").iterdir())) == 2  # one a draw
    held = [set(Run(tmp_path / "l-ts" / f"draw-{d}" / "seed-0").predictions()["clip_id"]) for d in (0, 1)]
    assert held[0] != held[1]
    r = done.results
    assert r.drop_duplicates(["row", "draw", "seed"]).shape[0] == 2 * 2 * 2
    stored = json.loads((tmp_path / "ablation.json").read_text())
    assert stored["draws"] == 2
    assert conclude(tmp_path).replicates == [Replicate(None, seed, draw) for draw in (0, 1) for seed in (0, 1)]
    assert "2 draws × 2 seeds" in done.text


def test_each_draw_is_tuned_by_itself(shards, tmp_path):
    """What its runs take is what its own trials have chosen; with ``tune_draws=1``, what those of draw 0 have."""
    call = {"shards": shards, "rows": {"neither": NEITHER}, "seeds": 1, "draws": 2, "tune": 4, **SHORT, **QUICK}
    done = kdcache.ablate("early", out=tmp_path / "each", **call)
    chosen = done.tuning[done.tuning["chosen"]].set_index("draw")["settings"].map(json.loads)
    assert list(chosen.index) == [0, 1]
    for draw in (0, 1):
        trained = Run(tmp_path / "each" / "neither" / f"draw-{draw}" / "seed-0").options
        assert {name: getattr(trained, name) for name in ("lr", "epochs")} == {
            name: chosen[draw].get(name, QUICK.get(name, trained.lr)) for name in ("lr", "epochs")
        }
        trials = (tmp_path / "each" / "neither").glob(f"tuning/trial-*/draw-{draw}/seed-*/metrics.json")
        assert len(list(trials)) == len(done.tuning[done.tuning["draw"] == draw]) == 4
    pd.testing.assert_frame_equal(tuning.read_tuning(tmp_path / "each"), done.tuning)
    assert "and what tuning chose" in done.text
    assert "Held fixed: the clips that test" in done.text
    assert "(trials on each draw by itself with 1 seed each)" in done.text
    once = kdcache.ablate("early", out=tmp_path / "once", tune_draws=1, **call)
    assert "draw" not in once.tuning
    pd.testing.assert_frame_equal(once.tuning, done.tuning[done.tuning["draw"] == 0].drop(columns="draw"))
    assert "what tuning chose" in once.text.partition("Held fixed")[2].partition("\n")[0]
    with pytest.raises(OptionError, match="tune_draws=all: give a number, or each"):
        kdcache.ablate("early", tune_draws="all", **call)


def test_each_draw_reads_its_own_cache_and_shares_no_teacher_with_others(shards, tmp_path):
    table = clips_cache.rows(24, 12)
    for draw in (0, 1):  # of one recipe: only the arrays tell them apart
        vectors = {clips_cache.STREAM: clips_cache.arrays(table, noise=4.0, seed=draw)}
        clips_cache.write(tmp_path / f"draw-{draw}", table, vectors)
    call = {"shards": tmp_path / "draw-{draw}", "rows": {"L_ts": {"beta": 0.0}}, "seeds": 1, "tune": 0, **QUICK}
    call |= {"validation": 0.0}
    kdcache.ablate("early", draws=2, out=tmp_path / "out", **call)
    runs = [Run(tmp_path / "out" / "l-ts" / f"draw-{d}" / "seed-0") for d in (0, 1)]
    assert [run.settings.shards for run in runs] == [str(tmp_path / f"draw-{d}") for d in (0, 1)]
    teachers = [(run.path / "teacher" / "last.safetensors").read_bytes() for run in runs]
    assert teachers[0] != teachers[1]
    with pytest.raises(OptionError, match=r"draw-\{draw\}: draw 2 has no cache: extract .*draw-2"):
        kdcache.ablate("early", draws=3, out=tmp_path / "more", **call)
    with pytest.raises(OptionError, match="stands for the number of a draw: give draws"):
        kdcache.ablate("early", out=tmp_path / "none", **call)
    clips_cache.cache(tmp_path / "draw-2", train=6, test=6)
    with pytest.raises(OptionError, match=r"draw-2 lacks clips of .*draw-0, or has more"):
        kdcache.ablate("early", draws=3, out=tmp_path / "other", **call)
    assert not (tmp_path / "more").exists()


def test_draws_may_be_splits_with_files_of_their_own(shards, tmp_path):
    table = clips_cache.rows(24, 12)
    for draw in (0, 1):
        of_draw = table.assign(clip_id=[f"{draw}-{name}" for name in table["clip_id"]])
        vectors = {clips_cache.STREAM: clips_cache.arrays(of_draw, noise=4.0, seed=draw)}
        clips_cache.write(tmp_path / f"draw-{draw}", of_draw, vectors)
    call = {"shards": tmp_path / "draw-{draw}", "rows": {"a": NEITHER}, "seeds": 1, "tune": 0, **QUICK}
    call |= {"validation": 0.0, "draws": 2}
    done = kdcache.ablate("early", out=tmp_path / "out", **call)
    assert set(done.results["draw"]) == {0, 1}
    named = pd.read_csv(tmp_path / "draw-1" / "manifest.csv", dtype=str)
    named["label"] = named["label"].replace("20", "10")
    named.to_csv(tmp_path / "draw-1" / "manifest.csv", index=False)
    reindex(tmp_path / "draw-1", keep_edits=True)
    with pytest.raises(OptionError, match=r"draw-1 holds other clips than .*draw-0, of other classes"):
        kdcache.ablate("early", out=tmp_path / "other", **call)


def test_draws_that_would_vary_nothing_are_refused(shards, tmp_path):
    call = {"shards": shards, "rows": {"a": NEITHER}, "tune": 0, "draws": 3, "out": tmp_path / "out", **QUICK}
    with pytest.raises(OptionError, match=r"draws=3 would vary nothing: every label is used .* hold no clips out"):
        kdcache.ablate("early", validation=0.0, **call)
    with pytest.raises(OptionError, match=r"would vary nothing: .* final runs hold nothing out"):
        kdcache.ablate("early", retrain=True, **call)
    with pytest.raises(OptionError, match=r"tune_draws=2: give no more than there are draws \(1\)"):
        kdcache.ablate("early", shards=shards, tune_draws=2, **QUICK)
    assert not (tmp_path / "out").exists()


def test_the_order_of_groups_depends_on_the_seed_and_zero_is_the_old_one():
    table = clips_cache.rows(40, 0, subject="").assign(group=[f"g{i % 10}" for i in range(40)])
    table = table.set_index("clip_id")
    everything = table["split"] == "train"

    def held(seed):
        return sorted(set(table["group"][hold_out(table, everything, 0.2, ["group"], quiet=True, seed=seed)]))

    assert held(0) == sorted(set(table["group"][hold_out(table, everything, 0.2, ["group"], quiet=True)]))
    assert len({tuple(held(seed)) for seed in range(8)}) > 3
    assert held(3) == held(3)


# Retraining


def test_validation_clips_may_count_as_others():
    rows = clips_cache.rows(6, 3, 3).assign(other=lambda t: t["split"].replace("validation", "val"))
    assert set(split_by(rows, "split", "test")["split"]) == {"train", "test"}
    assert (split_by(rows, "other", "train")["split"] == "train").sum() == 9
    assert split_by(rows, "split") is rows


@pytest.mark.parametrize("counts", [{"train": 24, "validation": 12, "test": 0}, {"train": 24, "test": 12}])
def test_retraining_selects_on_training_clips_and_ends_on_all_of_them(tmp_path, counts):
    folder = clips_cache.cache(tmp_path / "cache", noise=4.0, **counts)
    call = {"shards": folder, "rows": {"neither": NEITHER}, "seeds": 1, "tune": 2, **SHORT, **QUICK}
    if not counts["test"]:
        with pytest.raises(OptionError, match="has no test clips, so its validation clips are those that are reported"):
            kdcache.ablate("early", out=tmp_path / "refused", **call)
    with pytest.raises(OptionError, match="no clips out in the end, on which 'neither' could stop: set patience=0"):
        kdcache.ablate("early", retrain=True, patience=2, out=tmp_path / "early", **call)
    done = kdcache.ablate("early", retrain=True, out=tmp_path / "out", **call)
    reported = "validation-" if not counts["test"] else "test-"
    final = Run(tmp_path / "out" / "neither" / "seed-0")
    assert set(done.results["weights"]) == {"last"}
    assert set(final.predictions()["split"]) == {"test"}
    assert final.predictions()["clip_id"].str.startswith(reported).all()
    assert len(final.training_data.data.splits["train"]) == 24
    trials = [Run(path.parent) for path in (tmp_path / "out" / "neither" / "tuning").rglob("metrics.json")]
    assert len(trials) == 2
    for trial in trials:
        splits = trial.training_data.data.splits
        assert all(name.startswith("train-") for name in splits["validation"].names)
        assert len(splits["train"]) + len(splits["validation"]) == 24
        score = trial.metrics["last"]["validation"]["label"]["auc"]  # the epoch that the final run takes
        assert score in done.tuning["score"].tolist()
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["retrain"] is True


def test_named_validation_clips_train_in_the_end_where_others_are_reported(tmp_path):
    folder = clips_cache.cache(tmp_path / "cache", train=24, validation=12, test=12)
    calls = calls_of(folder, {"a": NEITHER}, retrain=0.25)
    (row,) = calls.comparison.runnable
    trial, final = (calls(row, None, None, phase, {}) for phase in ("trial", "final"))
    assert "validation_as" not in trial
    assert (final["validation_as"], final["validation"]) == ("train", 0.0)
    unnamed = clips_cache.write(
        tmp_path / "none", (t := clips_cache.rows(12, 0)), {clips_cache.STREAM: clips_cache.arrays(t)}
    )
    with pytest.raises(OptionError, match="names no test or validation clips to report on"):
        calls_of(unnamed, {"a": NEITHER}, retrain=0.25).check()


def test_a_comparison_that_an_earlier_version_tuned_is_not_mixed_with_other_trials(shards, tmp_path):
    (tmp_path / "ablation.json").write_text(json.dumps({"tune": 8}))
    with pytest.raises(OptionError, match="was tuned by an earlier version, whose trials were others"):
        kdcache.ablate("early", shards=shards, rows={"a": NEITHER}, tune=2, out=tmp_path, **QUICK)
