"""Tables of the papers as they can be run: all rows and numbers, columns for streams, gains, settings of presets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pairs_cache
import pytest
from click.testing import CliRunner
from unsealed import unsealed

import kdcache
from kdcache.cli import main
from kdcache.errors import OptionError
from kdcache.methods import METHODS
from kdcache.options import build
from kdcache.runs import fuse as fusion
from kdcache.runs import presets
from kdcache.runs.ablation import fused
from kdcache.runs.ablation.columns import with_streams
from kdcache.runs.ablation.rows import Comparison, choose_rows
from kdcache.runs.config import SETTABLE, RunSettings
from kdcache.runs.run import Run
from kdcache.store import Record, commit_shard, update_index

pytestmark = pytest.mark.usefixtures("one_thread")

RGB, FLOW, FRAMES = "i3d-rgb/mixed4a", "i3d-flow/mixed4a", "resnet34/pool"
QUICK = {"head": "light", "width": 4, "epochs": 1, "milestones": (), "device": "cpu", "tune": 0, "retrain": False}
LONGER = QUICK | {"epochs": 8, "lr": 0.05, "batch_size": 8}


def written(folder, table, streams, seed=0):
    """A cache of pairs with several streams; vectors [V, T, D] where the stream is of single frames."""
    clips = [{k: v for k, v in row.items() if v == v and v is not None} for row in table.to_dict("records")]
    for number, stream in enumerate(streams):
        maps = pairs_cache.arrays(table, seed=seed + number)
        if stream == FRAMES:
            maps = [m.mean((3, 4)).swapaxes(1, 2)[..., :8].astype(np.float16) for m in maps]
        head, _, layer = stream.partition("/")
        recipe = pairs_cache.recipe(stream)
        recipe["backbone"] |= {"name": head, "layer": "MaxPool3d_4a_3x3" if layer == "mixed4a" else layer}
        records = [
            Record(
                clip=clip,
                origin={},
                keys={stream: hashlib.md5(f"{stream}{clip['clip_id']}".encode()).hexdigest()},
                frames={stream: np.arange(4, dtype=np.int32)},
                arrays={stream: array},
            )
            for clip, array in zip(clips, maps, strict=True)
        ]
        update_index(folder, table, commit_shard(folder, records, {stream: recipe}).located)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """RGB and flow maps, and vectors of frames, of labelled pairs; every fourth validates."""
    return written(tmp_path_factory.mktemp("cache"), pairs_cache.rows(24), (RGB, FLOW, FRAMES))


@pytest.fixture(scope="module")
def filled(shards, tmp_path_factory):
    """Two rows of Table 1, two seeds."""
    out = tmp_path_factory.mktemp("ablations") / "table1"
    only = ["I3D", "I3D + L_d(A, R)"]
    return kdcache.ablate("anticipation", "table1", shards=shards, seeds=2, only=only, out=out, **LONGER)


# Rows and numbers, from the papers' text


def test_every_row_of_anticipation_table_2_and_3_is_there():
    found = presets.tables("anticipation")
    quoted = {"Where/What": 10.0, "Context-fusion": 28.0, "Within-class loss": 33.0, "ELSTM": 55.0, "FDI": 61.0}
    assert {row.name: row.paper["both"] for row in found["table2"].rows if row.quoted} == quoted | {"FM-RNN": 73.4}
    assert [(row.name, row.paper) for row in found["table2"].rows if not row.quoted] == [
        ("I3D + Knowledge distillation", {"both": 76.6})
    ]
    assert found["table1"].rows[-1].paper["both"] == 76.6
    assert found["table1"].rows[-1].options == found["table2"].rows[-1].options | {"loss_d": "both"}
    table3 = {row.name: row for row in found["table3"].rows}
    assert table3["R(2+1)D + Vis. Attr."].quoted
    assert {name: table3[name].options["stream"] for name in ("TSN-RGB", "TSM-RGB")} == {
        "TSN-RGB": FRAMES,
        "TSM-RGB": "tsm/pool",
    }
    assert all(table3[name].note for name in ("TSN-RGB", "TSM-RGB"))


def test_numbers_on_other_features_are_quoted_beside_the_same_method_on_those_of_the_cache():
    rows = {row.name: row for row in presets.table("early", "table2").rows}
    for name in ("KNN", "RankLSTM"):
        assert not rows[name].quoted
        assert rows[name].paper == {}
        assert rows[f"{name}, RGB-D features"].quoted
    assert rows["KNN, RGB-D features"].paper["AUC"] == 21.9
    assert "RGB-D" in choose_rows("early", "table2", {}, {}, None, {}).note


@pytest.mark.parametrize("method", list(METHODS))
def test_references_and_settings_are_of_things_that_exist(method):
    for table in presets.tables(method, check=False).values():
        runnable = [row.name for row in table.rows if not row.quoted]
        assert table.reference in ("", *runnable)
        assert {part for column in table.columns.values() for part in column.fuse} <= set(table.columns)
        assert bool(table.columns) == bool(table.metric)
    content = presets._read(method)
    assert set(content.get("settings", {})) <= set(content["presets"])
    for name in presets.names(method):
        its = presets.settings(method, name)
        assert set(its) <= set(SETTABLE)
        build(RunSettings, {"method": method, "shards": "", **its})


# Settings of presets


def test_presets_train_on_the_papers_clips():
    assert presets.training("early", "sysu") == {"beta": 1.0, "batch_size": 32, "validation": 0.0}
    assert presets.training("early", "ntu") == {"beta": 1.0, "validation": 0.05}
    assert presets.training("early", "ucf101") == {"beta": 0.5}  # its split has validation groups
    assert presets.preset("early", "sysu") == {"beta": 1.0, "batch_size": 32}  # options of the method alone
    assert presets.training("anticipation", "epic") == {"target": "verb", "validation": 0.0, "validation_as": "test"}
    assert not presets.retrains("early", "ntu")
    with pytest.raises(OptionError, match="did you mean 'sysu'"):
        presets.training("early", "sisu")


def test_rows_of_a_comparison_have_the_settings_and_set_wins():
    rows = choose_rows("early", "table2", {}, {}, None, {})
    assert {row.options["validation"] for row in rows.runnable} == {0.05}
    assert not rows.retrain
    more = choose_rows("early", "table2", {}, {}, None, {"validation": 0.1})
    assert {row.options["validation"] for row in more.runnable} == {0.1}
    sysu = choose_rows("early", "table1-sysu", {}, {}, None, {})
    assert sysu.retrain
    assert all("validation" not in row.options for row in sysu.runnable)  # held out for choosing, not in final runs
    own = choose_rows("early", None, {"a": {}}, {}, "ntu", {})
    assert own.runnable[0].options["validation"] == 0.05
    assert choose_rows("early", None, {"a": {}}, {}, "sysu", {}).retrain


def test_train_applies_the_settings_of_a_preset_and_of_a_row(monkeypatch):
    calls = []
    monkeypatch.setattr("kdcache.runs.train.train", lambda **given: calls.append(given))
    monkeypatch.setattr("kdcache.cli.train.report_training", lambda *_: None)

    def call(*arguments):
        result = CliRunner().invoke(main, ["train", "early", *arguments])
        assert result.exit_code == 0, result.output
        return calls[-1]

    assert call("--preset", "ntu")["validation"] == 0.05
    assert call("--preset", "ntu", "--set", "validation=0.1")["validation"] == 0.1
    assert call("--preset", "sysu")["validation"] == 0.0
    assert call("--row", "table1-sysu/With distillation")["validation"] == 0.0
    assert "validation" not in call("--row", "table1-ucf101/With distillation")
    assert call("--set", "stream=tsm/clip,vacnn/pool")["stream"] == "tsm/clip,vacnn/pool"


def test_help_says_what_a_preset_sets():
    text = " ".join(CliRunner().invoke(main, ["train", "early", "--help"]).output.split())
    assert "sysu beta=1 batch_size=32; trains on all training clips" in text
    assert "ntu beta=1 validation=0.05" in text


# EPIC-KITCHENS: selection never looks at P26-P31


def epic(folder, turned=False):
    """Participants P01 to P06 train, P26 and P31 are the manifest's validation split; two unlabelled pairs of each."""
    table = pairs_cache.rows(40, 8)
    people = [f"P{n:02d}" for n in (1, 2, 3, 4, 5, 6, 26, 31)]
    table["subject"] = [people[int(pair[1:]) % len(people)] for pair in table["pair"]]
    reported = table["subject"].isin(["P26", "P31"])
    table["split"] = np.where(reported & table["verb"].notna(), "validation", "train")
    maps = pairs_cache.arrays(table)
    if turned:
        table.loc[reported, "verb"] = 1 - table.loc[reported, "verb"]
    return pairs_cache.write(folder, table, maps)


def test_epic_is_selected_on_participants_of_p01_to_p25_and_reported_on_the_others(tmp_path):
    call = {"only": ["I3D + Knowledge distillation"], "seeds": 1, **LONGER, "tune": 2, "retrain": None}
    call |= {"min_steps": 1, "widen": 0, "epochs": 2}
    result, turned = (
        kdcache.ablate("anticipation", "table3", shards=epic(tmp_path / name, flag), out=tmp_path / f"o{name}", **call)
        for name, flag in (("a", False), ("b", True))
    )
    subject = dict(kdcache.Cache(tmp_path / "a").clips[["pair", "subject"]].to_numpy())
    trials = list(result.path.glob("*/tuning/trial-*/seed-1000"))
    assert trials
    for folder in trials:
        frame = Run(folder).predictions("last")
        held = frame[frame["verb"].notna()].groupby("split")["pair"].agg(lambda pairs: {subject[p] for p in pairs})
        assert held["test"] == {"P26", "P31"}
        assert held["validation"] < {f"P{n:02d}" for n in range(1, 7)}
    final = Run(result.path / "i3d-knowledge-distillation" / "seed-0")
    assert set(final.predictions("last")["split"]) == {"test"}
    assert len(final.training_data.data.splits["train"].names) == 30 + 8  # all labelled ones, and U
    assert "best@validation" not in final.metrics
    assert set(result.results["split"]) == {"test"}
    same = ["row", "trial", "settings", "score", "chosen"]
    assert result.tuning[same].equals(turned.tuning[same])  # whatever the labels of P26 and P31
    assert not result.results["value"].equals(turned.results["value"])


# Columns that are streams


def test_every_row_is_trained_on_each_stream_and_both_is_their_fusion(filled):
    rows = [f"{name}, {column}" for name in ("I3D", "I3D + L_d(A, R)") for column in ("rgb", "flow", "both")]
    assert list(dict.fromkeys(filled.results["row"])) == rows
    for slug, stream in (("i3d-rgb", RGB), ("i3d-flow", FLOW)):
        for seed in (0, 1):
            assert Run(filled.path / slug / f"seed-{seed}").settings.stream == stream
    assert not (filled.path / "i3d-both" / "seed-0" / "metrics.json").exists()
    results = filled.results.set_index(["row", "seed", "weights", "split", "metric"])["value"]
    for seed in (0, 1):
        parts = [filled.path / slug / f"seed-{seed}" for slug in ("i3d-rgb", "i3d-flow")]
        for which in ("best", "last"):
            expected = fusion.fuse(parts, which=which)["validation"]
            for metric in ("top1", "top5", "mean_recall"):
                if metric in expected:
                    assert results["I3D, both", seed, which, "validation", metric] == pytest.approx(expected[metric])
    assert filled.results[filled.results["row"] == "I3D, both"]["steps"].isna().all()


def test_rows_are_tested_within_their_column(filled):
    assert set(filled.tests["row"]) == {f"I3D + L_d(A, R), {column}" for column in ("rgb", "flow", "both")}
    r = filled.results
    last = r[(r["weights"] == "last") & (r["split"] == "validation") & (r["metric"] == "top1")]
    mean = last.groupby("row")["value"].mean()
    found = filled.tests[filled.tests["weights"] == "last"].set_index("row")["difference"]
    for column in ("rgb", "flow", "both"):
        gap = mean[f"I3D + L_d(A, R), {column}"] - mean[f"I3D, {column}"]
        assert found[f"I3D + L_d(A, R), {column}"] == pytest.approx(gap)
    assert found.nunique() > 1


def test_the_table_has_the_papers_columns_and_notes(filled):
    assert "| row | rgb | flow | both |" in filled.text
    assert "| ↳ paper | 69.0 | 64.4 | 74.9 |" in filled.text
    assert "tail-only" in filled.text
    pivot = filled.text.partition("## The paper's columns")[2].splitlines()
    ours = next(line for line in pivot if line.startswith("| **I3D + L_d(A, R)**"))
    assert "±" in ours
    assert "–" not in ours
    gaps = pivot[pivot.index(ours) + 2].split("|")[2:5]
    means = [float(cell.split("±")[0]) for cell in ours.split("|")[2:5]]
    for mean, gap, paper in zip(means, gaps, (70.2, 67.7, 76.6), strict=True):
        assert float(gap.replace("−", "-")) == pytest.approx(mean - paper, abs=0.11)


def test_the_same_call_trains_and_fuses_nothing_again(shards, filled, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("fused again")

    monkeypatch.setattr(fused, "fuse", refused)
    before = {p: p.stat().st_mtime_ns for p in filled.path.rglob("metrics.json")}
    only = ["I3D", "I3D + L_d(A, R)"]
    again = kdcache.ablate("anticipation", "table1", shards=shards, seeds=2, only=only, out=filled.path, **LONGER)
    assert {p: p.stat().st_mtime_ns for p in filled.path.rglob("metrics.json")} == before
    assert again.text == filled.text
    kept = unsealed(filled.path / "i3d-both" / "seed-0" / fused.FUSED)
    content = json.loads(kept.read_text())
    content["of"]["I3D, rgb"]["epochs"] = {"last": 7}
    kept.write_text(json.dumps(content))
    with pytest.raises(AssertionError, match="fused again"):  # a part has changed
        kdcache.ablate("anticipation", "table1", shards=shards, seeds=2, only=only, out=filled.path, **LONGER)


def columns_of(shards, stream=None, **options):
    table = presets.table("anticipation", "table1")
    return with_streams(choose_rows("anticipation", "table1", {}, {}, None, options), table, shards, stream)


def test_columns_whose_stream_is_missing_are_left_out_with_a_sentence(shards, tmp_path):
    bare = written(tmp_path / "rgb", pairs_cache.rows(8), (RGB,))
    comparison = columns_of(bare)
    assert {row.column for row in comparison.rows} == {"rgb"}
    assert f"left out: flow (the cache lacks {FLOW}), both (which fuses rgb and flow)." in comparison.note
    asked = columns_of(shards, FLOW)
    assert {row.column for row in asked.rows} == {"flow"}
    assert f"rgb (only {FLOW} is asked for, not {RGB})" in asked.note
    bare.rename(tmp_path / "draw-0")
    assert {row.column for row in columns_of(tmp_path / "draw-{draw}").rows} == {"rgb"}  # a cache for each draw
    none = columns_of(written(tmp_path / "frames", pairs_cache.rows(8), (FRAMES,)))
    assert [row.name for row in none.rows] == [row.name for row in presets.table("anticipation", "table1").rows]
    assert none.columns == ["rgb", "flow", "both"]


def test_a_row_that_reads_a_missing_stream_is_quoted(shards, tmp_path):
    chosen = choose_rows("anticipation", "table3", {}, {}, None, {})
    comparison = with_streams(chosen, presets.table("anticipation", "table3"), shards)
    by_name = {row.name: row for row in comparison.rows}
    assert by_name["TSM-RGB"].quoted
    assert "TSM-RGB is not run: it reads tsm/pool, which the cache lacks." in comparison.note
    assert by_name["TSN-RGB"].options["stream"] == FRAMES
    assert by_name["I3D"].options["stream"] == RGB
    asked = {row.name: row for row in with_streams(chosen, presets.table("anticipation", "table3"), shards, FLOW).rows}
    assert "stream" not in asked["I3D"].options  # what the call asks for
    bare = pairs_cache.cache(tmp_path / "bare", 8)
    alone = {row.name: row for row in with_streams(chosen, presets.table("anticipation", "table3"), bare).rows}
    assert "stream" not in alone["I3D"].options
    assert alone["TSN-RGB"].quoted
    frames = written(tmp_path / "frames", pairs_cache.rows(8), (FRAMES,))
    other = {row.name: row for row in with_streams(chosen, presets.table("anticipation", "table3"), frames).rows}
    with pytest.raises(OptionError, match=r"No row of table3 can be run on .*: TSM-RGB is not run: it reads tsm/pool"):
        kdcache.ablate("anticipation", "table3", shards=frames, only=["TSM-RGB"], out=tmp_path / "no")
    assert other["I3D"].quoted  # it would read single frames' features and be called I3D
    assert comparison.against() == "I3D"
    assert comparison.paper_gain(by_name["I3D + Knowledge distillation"], by_name["I3D"], "verb") == pytest.approx(1.7)


def test_rows_that_fuse_a_failed_one_fail_too(shards):
    comparison = columns_of(shards).without({"I3D, flow": "it diverged"})
    assert comparison.failed == {"I3D, flow": "it diverged", "I3D, both": "I3D, flow failed, which it fuses."}
    row = {row.name: row for row in comparison.compared}
    assert comparison.reference_of(row["I3D + L_direct, flow"], "I3D, rgb") is None
    assert comparison.reference_of(row["I3D + L_direct, rgb"], "I3D, rgb") == row["I3D, rgb"]
    assert comparison.against("I3D + L_direct") == "I3D + L_direct, rgb"
    assert Comparison.from_plain(json.loads(json.dumps(asdict(comparison)))) == comparison


def test_a_grid_keeps_the_reference():
    table = choose_rows("anticipation", "table1", {}, {"lam": [1.0, 10.0]}, None, {})
    assert table.against() == "I3D, lam=1"


# Gains


def test_gains_are_over_half_of_the_labels_in_each_column(shards, tmp_path):
    out = tmp_path / "figure3"
    result = kdcache.ablate("anticipation", "figure3", shards=shards, seeds=2, out=out, **QUICK, validation=0.2)
    assert result.tests["row"].nunique() == 4
    text = result.text.partition(": gain in top1 over Half of the labels")[2]
    assert "| row | gain_first | gain_second |" in text
    assert "| ↳ paper | 1.4 | 2.8 |" in text
    half = next(line for line in text.splitlines() if line.startswith("| **Half of the labels** |"))
    assert half == "| **Half of the labels** | 0.0 ± 0.0 | 0.0 ± 0.0 |"
    r = result.results
    best = r[(r["weights"] == "best") & (r["split"] == "validation") & (r["metric"] == "top1")]
    of = best.set_index(["row", "seed"])["value"]
    gaps = [of["All labels, gain_second", s] - of["Half of the labels, gain_second", s] for s in (0, 1)]
    shown = next(line for line in text.splitlines() if line.startswith("| **All labels** |")).split("|")[3]
    assert float(shown.split("±")[0].replace("−", "-")) == pytest.approx(np.mean(gaps), abs=0.06)
    comparison = with_streams(
        choose_rows("anticipation", "figure3", {}, {}, None, {}), presets.table("anticipation", "figure3"), shards
    )
    row = {row.name: row for row in comparison.rows}
    gain = comparison.paper_gain(row["All labels, gain_first"], row["Half of the labels, gain_first"], "top1")
    assert gain == pytest.approx(1.4)
