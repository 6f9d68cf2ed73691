"""What a report says of effects: units, sentences beside the paper's gains, what varied, pictures, stale files."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import clips_cache
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from unsealed import unsealed

import kdcache
from kdcache.engine import loop
from kdcache.errors import OptionError
from kdcache.metrics.significance import compare
from kdcache.report import ablation as report
from kdcache.report import plots
from kdcache.report.effects import ONE_UNIT, effects_section, paper_gains, sentence
from kdcache.report.setting import setting
from kdcache.report.tables import markdown, over_what, results_table
from kdcache.report.tuning import tuning_section
from kdcache.runs.ablation import results
from kdcache.runs.ablation.conclusion import conclude
from kdcache.runs.ablation.factors import Factors, factors
from kdcache.runs.ablation.replicates import Replicate, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.presets import TableRow
from kdcache.store.fitted import save_fitted

pytestmark = pytest.mark.usefixtures("one_thread")

KNN: dict[str, Any] = {"model": "knn", "device": "cpu"}


def found(gains: dict[str, list[list[float]]], splits: int = 1) -> pd.DataFrame:
    """Results of a row ``base`` at 50, 51 … over units, and of rows above it by ``[units][seeds]``; splits first."""
    known = {"weights": "last", "epoch": 3, "steps": 600, "split": "test", "metric": "auc"}
    made = []
    for row, units in {"base": None, **gains}.items():
        shape = next(iter(gains.values()))
        for unit, seeds in enumerate(shape):
            place = {"split_column": f"s{unit % splits}", "draw": unit // splits}
            for seed in range(len(seeds)):
                value = 50.0 + unit + (0 if units is None else units[unit][seed])
                made.append({"row": row, **place, "seed": seed, **known, "value": value})
    return pd.DataFrame(made).astype({"steps": "Int64"})


def comparison(*rows: str, paper: dict[str, float] | None = None) -> Comparison:
    numbers = paper or {}
    return Comparison("early", "", [], [TableRow(r, {}, {"AUC": numbers[r]} if r in numbers else {}) for r in rows])


def test_effects_are_over_draws_with_seeds_averaged_first():
    gains = {"a": [[1.0, 3.0], [2.0, 6.0], [8.0, 10.0]], "b": [[0.5, -0.5]] * 2 + [[1.0, 0.0]]}
    tests = results.tests(comparison("base", "a", "b"), found(gains), "base", "auc", "test")
    assert list(tests["row"]) == ["a", "b"]
    assert list(tests.columns[:4]) == ["row", "against", "weights", "metric"]
    for row in ("a", "b"):
        expected = compare(gains[row], comparisons=2)
        line = tests[tests["row"] == row].iloc[0]
        assert {name: line[name] for name in vars(expected)} == pytest.approx(vars(expected), nan_ok=True)
    lines = effects_section(tests, found(gains), "last", {})
    assert lines[0] == (
        "AUC against base, points: mean over 3 draws, with 95 % intervals that hold for all 2 rows at once "
        "(Bonferroni); seeds are averaged first"
    )
    assert lines[2] == "| row | difference | 95 % interval | detectable (80 % power) | higher in | p, adjusted |"
    half = 6.2053 * math.sqrt(13 / 3)  # printed t of 2 degrees of freedom at 0.025, two-sided
    assert lines[4].startswith(f"| a | +5.0 | −{half - 5:.1f} to +{half + 5:.1f} | ")
    assert lines[5].split(" | ")[4] == "1 of 3, equal in 2"
    table = results_table(comparison("base", "a", "b"), found(gains), {"AUC": "auc"}, "last", "test")
    assert table[2] == "| **base** | 3 | 600 | 51.0 ± 1.0 |"
    assert over_what(found(gains)) == "Mean ± std over 3 draws, seeds averaged first"


def test_draws_on_several_splits_have_an_interval_over_draws_alone():
    gains = {"a": [[1.0], [5.0], [2.0], [6.0], [3.0], [7.0]]}  # the second split gains four points more
    tests = results.tests(comparison("base", "a"), found(gains, splits=2), "base", "auc", "test")
    line = tests.iloc[0]
    assert (line["units"], line["difference"]) == (6, 4)
    over_draws = compare([[1, 5], [2, 6], [3, 7]])  # means 3, 4, 5
    assert (line["low_draws"], line["high_draws"]) == (over_draws.low, over_draws.high)
    lines = effects_section(tests, found(gains, splits=2), "last", {})
    assert "mean over 6 units (2 splits × 3 draws), with 95 % intervals" in lines[0]
    assert lines[-1].endswith("Over draws alone, splits averaged: +1.5 to +6.5.")
    alone = results.tests(comparison("base", "a"), found(gains), "base", "auc", "test").iloc[0]
    assert math.isnan(alone["low_draws"])


def test_one_draw_has_no_interval_and_says_why():
    gains = {"a": [[1.0, 2.0, 3.0]]}
    tests = results.tests(comparison("base", "a"), found(gains), "base", "auc", "test")
    lines = effects_section(tests, found(gains), "last", {"a": 6.2})
    assert lines[2:5] == [
        "| row | difference | std over seeds | paper's gain |",
        "| --- | --- | --- | --- |",
        "| a | +2.0 | 1.0 | +6.2 |",
    ]
    assert lines[-1] == ONE_UNIT
    assert over_what(found(gains)) == "Mean ± std over 3 seeds of one draw"


@pytest.mark.parametrize(
    ("ends", "detectable", "gain", "said"),
    [
        ((1.2, 3.4), 2.0, None, "a gains between 1.2 and 3.4 points."),
        ((-3.4, -1.2), 2.0, None, "a loses between 1.2 and 3.4 points."),
        (
            (-2.0, 3.0),
            3.4,
            1.2,
            "a: no difference is shown; a gain above 3.0 points or a loss above 2.0 is excluded. This design could "
            "not have seen the paper's gain of 1.2 (it sees 3.4 or more).",
        ),
        ((-0.5, 0.7), 0.9, 6.2, "It excludes the paper's gain of 6.2, which was made on other data."),
        ((-0.5, 1.3), 0.9, 1.2, "The interval holds the paper's gain of 1.2."),
        ((1.0, 5.0), 4.0, 1.2, "a gains between 1.0 and 5.0 points. The interval holds the paper's gain of 1.2."),
        ((1.0, 5.0), 4.0, -1.0, "It excludes the paper's loss of 1.0, which was made on other data."),
        ((1.0, 5.0), 4.0, 0.0, "a gains between 1.0 and 5.0 points."),
    ],
)
def test_sentences(ends, detectable, gain, said):
    line = {"row": "a", "units": 5, "difference": 1.0, "low": ends[0], "high": ends[1], "detectable": detectable}
    text = sentence(line | {"low_draws": math.nan, "high_draws": math.nan}, gain)
    assert text == said if said.startswith("a") else text.endswith(said)


def test_differences_that_do_not_vary_are_told_so_with_the_test_that_they_have():
    gains = {"a": [[1.0, 3.0]] * 8, "b": [[0.0, 0.0]] * 8}
    tests = results.tests(comparison("base", "a", "b"), found(gains), "base", "auc", "test")
    lines = effects_section(tests, found(gains), "last", {})
    assert lines[4:6] == ["| a | +2.0 | – | – | 8 of 8 | – |", "| b | +0.0 | – | – | 0 of 8, equal in 8 | – |"]
    assert lines[-2:] == [  # of 2^8 flips two are as extreme
        "- a: +2.0 points in each of 8 units; differences that do not vary have no interval and no t-test. The "
        "sign-flip test, which needs no spread, has p = 0.008, not adjusted.",
        "- b: +0.0 points in each of 8 units; differences that do not vary have no interval and no t-test.",
    ]


def test_the_papers_gain_is_over_the_same_reference_by_the_same_metric():
    rows = [
        TableRow("base", {}, {"20": 43.3, "AUC": 54.8}),
        TableRow("ours", {}, {"20": 50.0, "AUC": 61.0}),
        TableRow("other", {}, {"20": 50.0}),
    ]
    wanted = Comparison("early", "", ["20", "AUC"], rows)
    shown = {"20": "acc20", "AUC": "auc"}
    against = {"ours": "base", "other": "base"}
    assert paper_gains(wanted, shown, against, "auc") == {"ours": pytest.approx(6.2)}
    assert paper_gains(wanted, {"20": None, "AUC": None}, against, "auc") == {}
    assert paper_gains(replace(wanted, columns=[]), {"AUC": "auc"}, against, "auc") == {}


# What varied


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return clips_cache.cache(tmp_path_factory.mktemp("cache"), train=24, validation=18, test=12, noise=4.0)


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    """Two rows, a seed each, nothing tuned."""
    out, rows = tmp_path_factory.mktemp("ablations") / "made", {"base": {}, "near": {"k": 1}}
    return kdcache.ablate("early", shards=shards, rows=rows, seeds=1, tune=0, out=out, **KNN)


@pytest.fixture
def compared(made, tmp_path):
    """The same in a folder of its own."""
    return replace(made, path=shutil.copytree(made.path, tmp_path / "out"))


def test_what_varies_is_read_from_the_runs(shards, tmp_path):
    wanted = Comparison("early", "", [], [TableRow("a", {}, {}, slug="a"), TableRow("b", {}, {}, slug="b")])
    replicates = [Replicate(None, seed, draw) for draw in (0, 1) for seed in (0, 1)]
    for each in replicates:
        for slug, fraction in (("a", 1.0), ("b", 0.5)):
            out = run_folder(tmp_path, slug, each)
            labels = {"label_fraction": fraction, "label_seed": each.draw}
            kdcache.train("early", shards, out=out, seed=each.seed, **labels, **KNN)
    counted = factors(wanted, tmp_path, replicates)
    assert counted == Factors(
        (), draws=2, seeds=2, label_draws=2, tests=1, validations=1, backbones=1, caches=1, teachers=0
    )
    one = factors(replace(wanted, rows=wanted.rows[:1]), tmp_path, replicates)
    assert one.label_draws == 0  # every clip keeps its label, whatever label_seed says


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (
            Factors((), draws=5, seeds=3, label_draws=5, tests=1, validations=4, backbones=5, caches=5, teachers=1),
            [
                "Varied: 5 draws (the clips that keep their labels; the clips that validate, 4 different; the weights "
                "of the backbone) and 3 seeds of the trained networks in each.",
                "Held fixed: the clips that test and the teacher that rows and seeds share within a draw.",
            ],
        ),
        (
            Factors(
                ("s1", "s2"), draws=1, seeds=1, label_draws=0, tests=1, validations=1, backbones=1, caches=1, teachers=0
            ),
            [
                "Varied: 2 splits of the clips and 1 seed of the trained networks in each.",
                "Held fixed within a split: the clips that validate and the weights of the backbone.",
            ],
        ),
        (
            Factors((), draws=6, seeds=2, label_draws=0, tests=2, validations=6, backbones=1, caches=6, teachers=0),
            [
                "Varied: 6 draws (the clips that test, 2 different; the clips that validate) and 2 seeds of the "
                "trained networks in each.",
                "Held fixed: the weights of the backbone.",
            ],
        ),
        (
            Factors((), draws=3, seeds=1, label_draws=0, tests=3, validations=0, backbones=0, caches=3, teachers=0),
            ["Varied: 3 draws (the clips that test) and 1 seed of the trained networks in each."],
        ),
    ],
)
def test_what_varied_and_what_was_held_fixed_in_words(compared, counted, said):
    conclusion = replace(conclude(compared.path), factors=counted)
    assert [line for line in setting(conclusion) if line] == said


def test_tuning_says_what_was_searched_widened_chosen_and_on_an_edge(compared):
    known = {"split_column": "split", "problem": ""}
    added = '{"lr": 0.1, "w_cls": 0.3, "milestones": [2]}'
    tuned = pd.DataFrame(
        [
            {"row": "a", "trial": 0, "lr": 0.01, "settings": "{}", "score": 40.0, "chosen": False, "edge": ""},
            {"row": "a", "trial": 1, "lr": 0.1, "settings": added, "score": 44.0, "chosen": True, "edge": "lr high"},
            {"row": "b", "trial": 0, "lr": 0.01, "settings": "{}", "score": 50.0, "chosen": True, "edge": np.nan},
            {"row": "b", "trial": 1, "lr": 0.1, "settings": '{"lr": 0.1}', "score": 49.0, "chosen": False, "edge": ""},
        ]
    ).assign(**known)
    tuned = tuned[["row", "split_column", "trial", "lr", "settings", "score", "problem", "chosen", "edge"]]
    group = {"rows": ["a", "b"], "length": 2.0, "values": {"lr": [0.01, 0.1], "w_cls": [None, 0.3]}}
    group["widened"] = {"lr": {"low": 0, "high": 1}}
    search = {"tune_draws": 1, "tune_seeds": 2, "space": [group]}
    conclusion = replace(conclude(compared.path), tuning=tuned, search=search)
    assert tuning_section(conclusion) == [
        "Selected from 2 trials by auc on validation clips",
        "",
        "| row | trial | lr | also | score | score of its own settings |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 1 | 0.1 | w_cls=0.3 | 44.0 | 40.0 |",
        "| b | 0 | 0.01 |  | 50.0 | 50.0 |",
        "",
        "Searched, the same values for all rows that have the option (trials on draw 0 with 2 seeds each):",
        "",
        "- a, b: lr 0.01, 0.1; w_cls own, 0.3. Length × 2 was chosen for all of them; widened for all of them: "
        "lr (high).",
        "",
        "On the edge of the space, beyond which something better may lie: a (lr high).",
    ]
    old = replace(conclusion, search={"tune": 2}, tuning=tuned.drop(columns="edge"))  # of version 0.1
    assert tuning_section(old)[-1] == "| b | 0 | 0.01 |  | 50.0 | 50.0 |"


def test_draws_are_counted_and_named_in_the_report(shards, tmp_path):
    """From the call to the table: labels vary over draws, seeds are averaged within."""
    rows = {"base": {"k": 3}, "near": {"k": 1}}
    call = {"rows": rows, "draws": 3, "seeds": 1, "label_fraction": 0.5, "tune": 0, **KNN}
    result = kdcache.ablate("early", shards=shards, out=tmp_path / "out", **call)
    line = result.tests[result.tests["weights"] == "last"].iloc[0]
    assert (line["units"], line["runs"]) == (3, 3)
    numbers = result.results[(result.results["split"] == "test") & (result.results["metric"] == "auc")]
    numbers = numbers[numbers["weights"] == "last"].pivot(index="draw", columns="row", values="value")
    expected = compare([[gap] for gap in numbers["near"] - numbers["base"]])
    assert (line["difference"], line["low"]) == pytest.approx((expected.difference, expected.low), nan_ok=True)
    assert "AUC against base, points: mean over 3 draws, with 95 % intervals" in result.text
    assert (
        "Varied: 3 draws (the clips that keep their labels) and 1 seed of the trained networks in each." in result.text
    )
    assert "Held fixed: the clips that test, the clips that validate and the weights of the backbone." in result.text
    assert (tmp_path / "out" / "effects.png").exists()


def test_the_table_says_that_the_backbone_has_seen_labels_of_training_clips(tmp_path):
    cache = clips_cache.cache(tmp_path / "cache", train=24, test=12)
    save_fitted(cache, {"0" * 64: {"fitted_on": [f"train-0-{i:03d}" for i in range(8)]}})
    call: dict[str, Any] = {"shards": cache, "rows": {"base": {}, "near": {"k": 1}}, "seeds": 2, "tune": 0}
    call |= {"out": tmp_path / "out", "validation": 0, **KNN}
    text = kdcache.ablate("early", **call).text
    assert (
        "Features: the backbone was fitted on the labels of 8 of the 24 training clips, which are not cross-fitted "
        "(`kdcache fit --cross-fit K`): class scores on them, a teacher's too, are surer than on new clips." in text
    )
    assert text.index("## What the numbers rest on") < text.index("Features: ")
    # runs from before it was recorded: they are neither refused nor trained again
    files = [tmp_path / "out" / row / "metrics.json" for row in ("base/seed-0", "near/seed-0", "near/seed-1")]
    for file in files:
        metrics = json.loads(unsealed(file).read_text())
        assert metrics.pop("fitted_on_training") == {"clips": 8, "of": 24}
        file.write_text(json.dumps(metrics))
    before = [file.read_bytes() for file in files]
    text = kdcache.ablate("early", **call).text
    assert [file.read_bytes() for file in files] == before
    assert "Features of base: " in text
    assert "of the 24 training clips in 1 of 2 runs, which" in text
    assert kdcache.Run(files[0].parent).evaluate()["last"] == json.loads(before[0])["last"]


# Pictures and files


def test_pictures_of_effects_mark_intervals_and_the_papers_gain(tmp_path):
    bars = [plots.EffectBar("a", 1.0, -1.0, 3.0, 2.0), plots.EffectBar("b", -1.0, math.nan, math.nan)]
    for name, panels in (("one", {"last": bars}), ("two", {"best": bars, "last": bars})):
        plots.effects(tmp_path / f"{name}.png", panels, "AUC over base")
        with Image.open(tmp_path / f"{name}.png") as picture:
            colours = {c for _, c in picture.convert("RGB").getcolors(2**20)}
        assert {(31, 119, 180), (255, 127, 14)} <= colours  # the interval's, the paper's


def test_bands_are_intervals_over_units_or_a_standard_deviation_over_seeds():
    values = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, 2.0]])
    np.testing.assert_allclose(plots._spread(values, interval=False), [2, np.nan])
    np.testing.assert_allclose(plots._spread(values, interval=True), [4.30265 * 2 / math.sqrt(3), np.nan], rtol=1e-5)


def test_reported_clips_do_not_choose_the_row_that_is_shown(compared):
    conclusion = conclude(compared.path)
    rows = [*conclusion.comparison.rows, replace(conclusion.comparison.rows[0], name="third")]
    best = conclusion.results["row"].eq("near") & conclusion.results["split"].eq("validation")
    scored = conclusion.results.assign(value=conclusion.results["value"].mask(best, 100.0))
    third = scored[scored["row"] == "base"].assign(row="third")
    known = replace(
        conclusion,
        comparison=replace(conclusion.comparison, rows=rows),
        results=pd.concat([scored, third], ignore_index=True),
    )
    assert report.shown_row(known).name == "near"  # validation clips choose, test clips are reported
    assert report.shown_row(replace(known, split="validation")).name == "third"


def test_no_table_of_an_earlier_call_stays_when_the_reference_row_fails(compared, shards, monkeypatch):
    assert (compared.path / "table.md").exists()
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("nothing of it is trained"))
    rows = {"base": {"tau": 50, "model": "student"}, "near": {"k": 1, "model": "knn"}}
    with pytest.raises(OptionError, match=r"base: .*The other rows are tested against it"):
        kdcache.ablate("early", shards=shards, rows=rows, seeds=1, tune=0, out=compared.path, device="cpu")
    left = {path.name for path in compared.path.iterdir() if path.is_file()}
    assert left == {"cost.csv"}
    with pytest.raises(OptionError, match="holds no finished comparison"):
        conclude(compared.path)


def test_a_repeat_leaves_no_picture_of_what_is_no_longer_compared(compared, shards):
    assert (compared.path / "effects.png").exists()
    kdcache.ablate("early", shards=shards, rows={"base": {}}, seeds=1, tune=0, out=compared.path, **KNN)
    assert not {"effects.png", "gain.png"} & {path.name for path in compared.path.iterdir()}
    assert json.loads((compared.path / "ablation.json").read_text())["against"] == "base"
    assert markdown(conclude(compared.path)) == (compared.path / "table.md").read_text()
