"""Draws of a comparison: all of them differ, name the same splits, and report nothing that a choice was made on."""

from __future__ import annotations

import json
import shutil
from typing import Any

import clips_cache
import pytest

import kdcache
from kdcache.errors import OptionError
from kdcache.runs.ablation import draw_checks
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.conclusion import conclude
from kdcache.runs.ablation.draw_checks import check_draws, refuse_reported
from kdcache.runs.ablation.draws import Draws
from kdcache.runs.ablation.rows import choose_rows
from kdcache.runs.train import Run

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 1, "milestones": (), "batch_size": 8, "hidden": 8, "teacher_hidden": 4, "device": "cpu"}
NEITHER = {"alpha": 0.0, "beta": 0.0}
KNN = {"model": "knn"}


@pytest.fixture(autouse=True)
def few_seeds(monkeypatch):
    """Enough of them to find all divisions of four groups."""
    monkeypatch.setattr(draw_checks, "SEEDS", 25)


def calls_of(shards, rows=None, **more: Any) -> Calls:
    common = {"method": "early", "shards": str(shards), "device": "cpu", "precision": "auto", "stream": None}
    return Calls(comparison=choose_rows("early", None, rows or {"a": NEITHER}, {}, None, {}), common=common, **more)


def write(folder, table, seed=0, streams=(clips_cache.STREAM,)):
    vectors = {stream: clips_cache.arrays(table, noise=4.0, seed=seed) for stream in streams}
    return clips_cache.write(folder, table, vectors)


def of_subjects(count, **columns):
    """24 training clips of so many subjects, and 12 test clips; no named validation clips."""
    table = clips_cache.rows(24, 12)
    trains = table["split"] == "train"
    subjects = [f"S{i % count}" if train else "T" for i, train in enumerate(trains)]
    return table.assign(subject=subjects, **columns)


def turned(table):
    """The same clips; those that validated test, and the other way round."""
    others = {"train": "train", "validation": "test", "test": "validation"}
    return table.assign(split=table["split"].map(others))


def held_out(calls) -> list[frozenset[str]]:
    (row,), draws = calls.comparison.runnable, Draws(calls)
    return [draws.opened(row, None, draw, "final").clips["validation"] for draw in draws.numbers]


# All of them differ


def test_groups_are_drawn_without_repetition_and_draws_that_differed_stay_as_they_were(tmp_path):
    folder = write(tmp_path / "four", of_subjects(4))
    by_number = held_out(calls_of(folder, draws=4))
    assert len(set(by_number)) < 4  # validation_seed 0 to 3: some groups come twice
    made = {count: check_draws(calls_of(folder, draws=count)) for count in (2, 3, 4)}
    assert len(set(held_out(made[4]))) == 4  # all that there are
    for draw, clips in enumerate(by_number):
        assert ((None, draw) in made[4].validation_seeds) == (clips in held_out(made[4])[:draw])
    for count in (2, 3):  # a further draw changes none
        assert held_out(made[count]) == held_out(made[4])[:count]
    with pytest.raises(OptionError, match=r"draws=5: only 4 different .*draw 4 has .* of draw \d\): give draws=4"):
        check_draws(calls_of(folder, draws=5))


def test_runs_and_trials_of_a_draw_take_its_groups(tmp_path):
    folder = write(tmp_path / "two", of_subjects(2))
    call = {"rows": {"a": NEITHER}, "seeds": 1, "tune": 2, "min_steps": 1, "widen": 0, **QUICK}
    with pytest.raises(OptionError, match="draws=8: only 2 different draws were found"):
        kdcache.ablate("early", shards=folder, draws=8, out=tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()
    done = kdcache.ablate("early", shards=folder, draws=2, out=tmp_path / "out", **call)
    for draw, seed in ((0, 0), (1, check_draws(calls_of(folder, draws=2)).validation_seeds[None, 1])):
        runs = list((tmp_path / "out" / "a").rglob(f"draw-{draw}/seed-*/metrics.json"))
        assert len(runs) == 3
        assert {Run(path.parent).settings.validation_seed for path in runs} == {seed}
    assert conclude(tmp_path / "out").factors.validations == 2
    assert "Varied: 2 draws (the clips that validate)" in done.text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("metrics.json")}
    kdcache.ablate("early", shards=folder, draws=2, out=tmp_path / "out", **call)  # goes on, and finds all of it
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("metrics.json")} == before


def test_every_split_column_and_every_row_is_asked(tmp_path):
    named = of_subjects(4).assign(s1=lambda t: t["split"], s2=lambda t: t["split"])
    named.loc[named.index[:8], "s2"] = "validation"
    folder = write(tmp_path / "cache", named)
    assert check_draws(calls_of(folder, draws=2, columns=["s1"])).draws == 2
    with pytest.raises(OptionError, match=r"draws=2 would vary nothing on s2: .* hold no clips out by themselves"):
        check_draws(calls_of(folder, draws=2, columns=["s1", "s2"]))
    rows = {"few": {"label_fraction": 0.5, "split_column": "s2"}, "all": {"split_column": "s2"}}
    assert check_draws(calls_of(folder, {"few": rows["few"]}, draws=2)).draws == 2
    with pytest.raises(OptionError, match="draws=2 would vary nothing in row 'all'"):
        check_draws(calls_of(folder, rows, draws=2))
    rows["few"]["label_seed"] = 3
    with pytest.raises(OptionError, match="draws=2 would vary nothing: every label is used"):
        check_draws(calls_of(folder, {"few": rows["few"]}, draws=2))


def test_caches_of_draws_hold_other_arrays_labels_or_splits(tmp_path):
    table = clips_cache.rows(24, 12, 12)
    write(tmp_path / "draw-0", table)
    shutil.copytree(tmp_path / "draw-0", tmp_path / "draw-1")
    write(tmp_path / "draw-2", table, seed=2)
    shards = tmp_path / "draw-{draw}"
    with pytest.raises(OptionError, match=r"draws=2 would vary nothing: .* the draws' caches hold the same arrays"):
        check_draws(calls_of(shards, draws=2))
    with pytest.raises(OptionError, match=r"draws=3: only 2 different .* give draws=1, or extract another .* draw 1"):
        check_draws(calls_of(shards, draws=3))
    assert check_draws(calls_of(shards, {"few": {"label_fraction": 0.5}}, draws=2)).draws == 2
    write(tmp_path / "turned-0", table)
    write(tmp_path / "turned-1", turned(table))  # arrays alone are the same
    assert check_draws(calls_of(tmp_path / "turned-{draw}", draws=2)).draws == 2


# The same splits


@pytest.mark.parametrize("how", [{"tune": 2}, {"tune": 0}, {"tune": 2, "retrain": True}])
def test_draws_that_name_other_splits_are_refused(tmp_path, how):
    table = clips_cache.rows(24, 12, 12)
    write(tmp_path / "draw-0", table)
    write(tmp_path / "draw-1", table.assign(split=table["split"].replace("test", "validation")))
    call = {"rows": {"a": NEITHER}, "draws": 2, "out": tmp_path / "out", **QUICK, **how}
    said = "draw-1 names validation clips in column split, and .*draw-0 validation and test clips: name the same splits"
    with pytest.raises(OptionError, match=said):
        kdcache.ablate("early", shards=tmp_path / "draw-{draw}", **call)
    assert not (tmp_path / "out").exists()


def test_draws_that_lack_the_arrays_of_a_split_are_refused(tmp_path):
    table = clips_cache.rows(24, 12, 12)
    write(tmp_path / "draw-0", table)
    some = [v if s != "test" else None for v, s in zip(clips_cache.arrays(table, seed=1), table["split"], strict=True)]
    clips_cache.write(tmp_path / "draw-1", table, {clips_cache.STREAM: some})
    said = "'a' has validation clips in draw 1, and validation and test clips in draw 0: extract what is missing"
    with pytest.raises(OptionError, match=said):
        check_draws(calls_of(tmp_path / "draw-{draw}", draws=2))


def test_a_row_that_cannot_be_trained_in_a_later_draw_gets_no_trials(tmp_path):
    table = clips_cache.rows(24, 12, 12)
    write(tmp_path / "draw-0", table, 0, ["vacnn/pool", "vacnn/other"])
    write(tmp_path / "draw-1", table, 1)
    rows = {"a": NEITHER | {"stream": "vacnn/pool"}, "b": NEITHER | {"stream": "vacnn/other"}}
    call = {"rows": rows, "seeds": 1, "draws": 2, "tune": 1, "min_steps": 1, "widen": 0, "out": tmp_path / "out"}
    done = kdcache.ablate("early", shards=tmp_path / "draw-{draw}", **call, **QUICK)
    assert list(done.failed) == ["b"]
    assert (tmp_path / "out" / "a").exists()
    assert not (tmp_path / "out" / "b").exists()


# Nothing reported that a choice was made on


def test_a_choice_for_all_draws_is_not_made_on_clips_that_another_draw_reports(tmp_path):
    table = clips_cache.rows(24, 12, 12)
    write(tmp_path / "draw-0", table)
    write(tmp_path / "draw-1", turned(table))
    call = {"rows": {"a": NEITHER}, "seeds": 1, "draws": 2, "tune": 1, "min_steps": 1, "widen": 0, **QUICK}
    shards = tmp_path / "draw-{draw}"
    said = "tune_draws=1: what all .* 12 that validate in draw 0 test in draw 1, such as validation-1-000: leave tune_"
    with pytest.raises(OptionError, match=said):
        kdcache.ablate("early", shards=shards, tune_draws=1, out=tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()
    done = kdcache.ablate("early", shards=shards, out=tmp_path / "out", **call)  # each by itself
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["tune_draws"] == "each"
    assert done.tuning["draw"].tolist() == [0, 1]


def test_clips_of_other_ids_are_the_same_by_source_and_span(tmp_path):
    table = clips_cache.rows(24, 12, 12)
    other = turned(table).assign(clip_id=[f"other-{name}" for name in table["clip_id"]])
    write(tmp_path / "draw-0", table)
    write(tmp_path / "draw-1", other)
    calls = check_draws(calls_of(tmp_path / "draw-{draw}", draws=2))
    with pytest.raises(OptionError, match="12 that validate in draw 0 test in draw 1, such as validation-1-000"):
        refuse_reported(calls, [0])
    write(tmp_path / "apart-0", table)
    write(tmp_path / "apart-1", other.assign(source=[f"other/{name}" for name in other["source"]]))
    refuse_reported(check_draws(calls_of(tmp_path / "apart-{draw}", draws=2)), [0])
    packed = {"source": "all.npz"}  # a file of many clips says nothing of any
    write(tmp_path / "packed-0", table.assign(**packed))
    write(tmp_path / "packed-1", other.assign(**packed))
    refuse_reported(check_draws(calls_of(tmp_path / "packed-{draw}", draws=2)), [0])


# What the report says of them


def test_test_clips_that_differ_between_draws_are_not_called_fixed(tmp_path):
    table = clips_cache.rows(24, 12, 12)
    for draw in range(3):
        write(tmp_path / f"draw-{draw}", turned(table) if draw == 1 else table, seed=draw)
    call = {"rows": {"a": KNN}, "seeds": 1, "tune": 0, "out": tmp_path / "out", **QUICK}
    done = kdcache.ablate("early", shards=tmp_path / "draw-{draw}", draws=3, **call)
    assert conclude(tmp_path / "out").factors.tests == 2
    varied, _, fixed = done.text.partition("Varied: ")[2].partition("Held fixed: ")
    assert varied.startswith("3 draws (the clips that test, 2 different; the clips that validate, 2 different)")
    assert "test" not in fixed.partition("\n")[0]
    one = kdcache.ablate("early", shards=tmp_path / "draw-{draw}", draws=1, **call | {"out": tmp_path / "one"})
    assert "Held fixed: the clips that test, the clips that validate" in one.text
