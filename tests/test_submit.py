"""``submit``: files for the EPIC-KITCHENS challenges, what is refused in them, and the official numbers of runs."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import epic_lists
import numpy as np
import pairs_cache
import pandas as pd
import past_cache
import pytest
from click.testing import CliRunner

import kdcache
from kdcache.cli import main
from kdcache.datasets.epic_challenge import open_challenge
from kdcache.errors import OptionError, SourceError
from kdcache.metrics.epic import EpicScores, EpicTruth, action_ids, best_products, measure_epic55, measure_epic100
from kdcache.metrics.topk import marginalise
from kdcache.runs.challenge_file import SegmentScores, write_file
from kdcache.runs.run import Run
from kdcache.runs.submit import check, submit

QUICK = {"hidden": 16, "dropout": 0.0, "epochs": 3, "batch_size": 8, "lr": 0.1, "device": "cpu", "completion": False}
PAIRS = np.array(past_cache.PAIRS)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return past_cache.rows(train=24, validation=12, test=8, test_s1=5, test_s2=4)


@pytest.fixture(scope="module")
def shards(table, tmp_path_factory) -> Path:
    return past_cache.write(tmp_path_factory.mktemp("cache"), table, {"rulstm/rgb": 6})


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> dict[str, Path]:
    """A run of actions, one of verbs and one of nouns."""
    folder = tmp_path_factory.mktemp("runs")
    targets = ("label", "verb", "noun")
    return {t: kdcache.train("rulstm", shards, out=folder / t, target=t, **QUICK).path for t in targets}


@pytest.fixture(scope="module")
def epic100(table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lists") / "epic100"
    return epic_lists.epic100(folder, table, ["validation1"], [2], [1, 4])


@pytest.fixture(scope="module")
def epic55(tmp_path_factory) -> tuple[Path, Path]:
    """A run on segments that have numbers, with leading zeros as in RULSTM's lists, and the official lists."""
    folder = tmp_path_factory.mktemp("epic55")
    rows = past_cache.rows(train=24, validation=12, test_s1=5, test_s2=4)
    rows["uid"] = [str(n) for n in range(len(rows))]
    lists = epic_lists.epic55(folder / "lists", rows)
    rows["uid"] = rows["uid"].str.zfill(5)
    shards = past_cache.write(folder / "cache", rows, {"rulstm/rgb": 6})
    return kdcache.train("rulstm", shards, out=folder / "run", **QUICK).path, lists


def one_second_ahead(run: Path, split: str) -> np.ndarray:
    return Run(run).predict(split).xs(1.0, level="tau_s").to_numpy()


def test_a_file_of_epic100_from_a_run_of_actions(runs, epic100, table, tmp_path):
    found = submit(runs["label"], tmp_path / "test.zip", annotations=epic100, sls="1-3-3")
    assert (found.edition, found.segments, found.zeros) == ("epic100", {"test.json": 8}, {"test.json": 0})
    assert check(tmp_path / "test.zip", epic100)[0] == []
    with zipfile.ZipFile(tmp_path / "test.zip") as archive:
        assert archive.namelist() == ["test.json"]
        written = json.loads(archive.read("test.json"))
    assert {key: value for key, value in written.items() if key != "results"} == {
        "version": "0.2",
        "challenge": "action_anticipation",
        "sls_pt": 1,
        "sls_tl": 3,
        "sls_td": 3,
    }
    probabilities = one_second_ahead(runs["label"], "test")
    assert list(written["results"]) == table.loc[table["split"] == "test", "uid"].tolist()
    for own, entry in zip(probabilities, written["results"].values(), strict=True):
        assert list(entry) == ["verb", "noun", "action"]
        assert [len(entry[task]) for task in entry] == [97, 300, 100]
        assert [entry["action"][f"{v},{n}"] for v, n in past_cache.PAIRS] == pytest.approx(own.tolist(), rel=1e-6)
        assert sum(entry["action"].values()) == pytest.approx(1, abs=1e-5)  # the 96 others are zeros
        # actions 0 and 1 have verb 0, 0 and 2 have noun 3
        assert entry["verb"]["0"] == pytest.approx(own[0] + own[1], rel=1e-5)
        assert (entry["verb"]["2"], entry["verb"]["1"]) == (pytest.approx(own[2], rel=1e-5), 0)
        assert entry["noun"]["3"] == pytest.approx(own[0] + own[2], rel=1e-5)


def test_the_same_run_gives_the_same_bytes(runs, epic100, tmp_path):
    for name in ("a.zip", "b.zip"):
        submit(runs["label"], tmp_path / name, annotations=epic100, sls="0-3-3")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_nine_numbers_of_a_run_and_of_its_file(runs, epic100, tmp_path):
    path = tmp_path / "validation.json"
    found = submit(runs["label"], path, annotations=epic100, split="validation", sls="1-3-3")
    probabilities, y = one_second_ahead(runs["label"], "validation"), np.arange(12) % 4
    scores = EpicScores(
        marginalise(probabilities, PAIRS[:, 0], 97),
        marginalise(probabilities, PAIRS[:, 1], 300),
        probabilities,
        np.tile(action_ids(PAIRS[:, 0], PAIRS[:, 1]), (12, 1)),
    )
    truth = EpicTruth(PAIRS[y, 0], PAIRS[y, 1])
    unseen = np.arange(12) % 3 == 1  # subject validation1
    expected = measure_epic100(scores, truth, unseen, [2], [1, 4])
    assert found.numbers == pytest.approx(expected)
    assert (found.measured_on, found.lacking) == (12, 0)
    sentences, again = check(path, epic100)
    assert sentences == []
    assert again.numbers == pytest.approx(expected)
    assert again.measured_on == 12


def test_epic55_has_two_files_in_an_archive(epic55, tmp_path):
    run, lists = epic55
    found = submit(run, tmp_path / "out.zip", annotations=lists)
    assert found.segments == {"seen.json": 5, "unseen.json": 4}
    assert check(tmp_path / "out.zip", lists)[0] == []
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        written = {name: json.loads(archive.read(name)) for name in archive.namelist()}
    assert list(written) == ["seen.json", "unseen.json"]
    assert [list(w) for w in written.values()] == [["version", "challenge", "results"]] * 2
    assert written["seen.json"]["version"] == "0.1"
    assert list(written["seen.json"]["results"]) == ["36", "37", "38", "39", "40"]
    assert len(written["unseen.json"]["results"]["41"]["verb"]) == 125
    assert len(written["unseen.json"]["results"]["41"]["noun"]) == 352
    probabilities, y = one_second_ahead(run, "validation"), np.arange(12) % 4
    scores = EpicScores(
        marginalise(probabilities, PAIRS[:, 0], 125),
        marginalise(probabilities, PAIRS[:, 1], 352),
        probabilities,
        np.tile(action_ids(PAIRS[:, 0], PAIRS[:, 1]), (12, 1)),
    )
    many_shot = {"verb": [0, 2], "noun": [3, 4], "action": [3, 2003]}
    assert found.numbers == pytest.approx(measure_epic55(scores, EpicTruth(PAIRS[y, 0], PAIRS[y, 1]), many_shot))
    assert found.measured_on == 12  # the training actions of the labelled list are not held out
    with pytest.raises(OptionError, match=r"takes seen.json and unseen.json together; write a .zip"):
        submit(run, tmp_path / "out.json", annotations=lists)
    with pytest.raises(OptionError, match="no official validation set"):
        submit(run, tmp_path / "out.zip", annotations=lists, split="validation")


def test_verbs_and_nouns_make_actions(runs, epic100, tmp_path):
    submit([runs["verb"], runs["noun"]], tmp_path / "test.json", annotations=epic100, sls="1-3-3")
    entry = next(iter(json.loads((tmp_path / "test.json").read_text())["results"].values()))
    verb, noun = (one_second_ahead(runs[part], "test")[0] for part in ("verb", "noun"))
    # classes: verbs 0, 2, 5; nouns 1, 3, 4
    for i, v in enumerate((0, 2, 5)):
        assert entry["verb"][str(v)] == pytest.approx(verb[i], rel=1e-6)
        for j, n in enumerate((1, 3, 4)):
            assert entry["action"][f"{v},{n}"] == pytest.approx(verb[i] * noun[j], rel=1e-5)
    with pytest.raises(OptionError, match=r"predict verb: give one of actions"):
        submit(runs["verb"], annotations=epic100)


def test_runs_of_one_target_are_averaged_and_verbs_of_their_own_are_taken(runs, shards, epic100, tmp_path):
    other = kdcache.train("rulstm", shards, out=tmp_path / "other", seed=1, **QUICK).path
    submit([runs["label"], other, runs["verb"]], tmp_path / "test.json", annotations=epic100, sls="1-3-3")
    entry = next(iter(json.loads((tmp_path / "test.json").read_text())["results"].values()))
    mean = (one_second_ahead(runs["label"], "test") + one_second_ahead(other, "test"))[0] / 2
    assert [entry["action"][f"{v},{n}"] for v, n in past_cache.PAIRS] == pytest.approx(mean.tolist(), rel=1e-5)
    assert entry["verb"]["5"] == pytest.approx(one_second_ahead(runs["verb"], "test")[0, 2], rel=1e-6)


def test_pairs_of_clips_are_submitted_by_what_was_observed(tmp_path):
    rows = pairs_cache.rows(24)
    number = rows["pair"].str[1:].astype(int)
    rows = rows.assign(noun=(number % 3).astype("Int64"), uid="P01_" + number.astype(str), tau="1.0", subject="P01")
    rows["group"] = rows["source"]
    shards = pairs_cache.write(tmp_path / "cache", rows, pairs_cache.arrays(rows))
    quick = {"epochs": 1, "milestones": (), "batch_size": 16, "head": "light", "width": 8, "device": "cpu"}
    run = kdcache.train("anticipation", shards, out=tmp_path / "run", loss_d="none", **quick)
    seen = rows[(rows["role"] == "observed") & (rows["split"] == "validation")]
    action = seen.assign(stop_s=seen["stop_s"] + 1.0)  # the official files give the actions' starts
    lists = epic_lists.epic100(tmp_path / "lists", action, [], [1], [2])
    found = submit(run, annotations=lists)
    assert found.measured_on == 6
    frame = run.predict("validation")
    y = number[seen.index] % 3
    right = [sorted(p, reverse=True).index(p[c]) < 5 for p, c in zip(frame.to_numpy().tolist(), y, strict=True)]
    assert found.numbers["overall_action_mt5r"] == 100 * np.mean(right)
    with pytest.raises(OptionError, match=r"are 1 s apart, not 0.5"):
        submit(run, annotations=lists, tau_s=0.5)
    soon = epic_lists.epic100(tmp_path / "soon", seen.assign(stop_s=seen["stop_s"] + 0.5), [], [1], [2])
    with pytest.raises(OptionError, match=r"later than 1 s before its action at .* as do 5 others"):
        submit(run, annotations=soon)
    recognition = kdcache.train(
        "anticipation", shards, out=tmp_path / "action", loss_d="none", network="recognition", **quick
    )
    with pytest.raises(OptionError, match="sees the action itself"):
        submit(recognition, annotations=lists)


def test_products_in_pieces_are_products():
    rng = np.random.default_rng(0)
    verb, noun = rng.random((5, 4)), rng.random((5, 6))
    scores, ids = best_products(verb, noun, 7, rows=2)
    for i in range(5):
        every = sorted(((verb[i, v] * noun[i, n], 1000 * v + n) for v in range(4) for n in range(6)), reverse=True)[:7]
        assert sorted(ids[i].tolist()) == sorted(c for _, c in every)
        np.testing.assert_allclose(scores[i], [s for s, _ in sorted(every, key=lambda pair: pair[1])])


def test_segments_that_the_cache_lacks(runs, table, tmp_path):
    more = pd.concat([table, past_cache.rows(test=10).tail(2), past_cache.rows(validation=14).tail(2)])
    lists = epic_lists.epic100(tmp_path / "lists", more, ["validation1"], [2], [1, 4])
    run, path = runs["label"], tmp_path / "test.json"
    with pytest.raises(OptionError, match=r"2 of the 10 segments of test.json .*first test-8\): add them to the cache"):
        submit(run, path, annotations=lists, sls="1-3-3")
    assert not path.exists()
    plain = submit(run, annotations=lists)
    assert (plain.measured_on, plain.lacking) == (12, 2)
    found = submit(run, path, annotations=lists, sls="1-3-3", fill=True)
    assert (found.segments, found.zeros) == ({"test.json": 10}, {"test.json": 2})
    assert check(path, lists)[0] == []
    entry = json.loads(path.read_text())["results"]["test-9"]
    assert {score for task in entry.values() for score in task.values()} == {0}
    assert (found.measured_on, found.lacking) == (14, 0)
    # Of four actions each is among the five best. The two of zeros are of actions 0 and 1, and are not: their actions
    # are no more than others with a score of 0. 3 of 4 segments of these are left, and 3 of 3 of the other two.
    assert plain.numbers["overall_action_mt5r"] == 100
    assert found.numbers["overall_action_mt5r"] == pytest.approx(100 * (3 / 4 + 3 / 4 + 1 + 1) / 4)


def test_another_cache_with_the_segments(runs, table, epic100, tmp_path):
    first = past_cache.write(tmp_path / "first", table[table["split"].isin(["train", "validation"])], {"rulstm/rgb": 6})
    run = kdcache.train("rulstm", first, out=tmp_path / "run", **QUICK).path
    with pytest.raises(OptionError, match=r"has none of the 8 segments of test.json: list them in the manifest"):
        submit(run, tmp_path / "a.zip", annotations=epic100, sls="1-3-3")
    whole = past_cache.write(tmp_path / "whole", table, {"rulstm/rgb": 6})
    assert submit(run, tmp_path / "a.zip", annotations=epic100, sls="1-3-3", shards=whole).segments == {"test.json": 8}


def test_clips_that_show_the_action_are_refused(runs, table, tmp_path):
    early = table.assign(stop_s=table["stop_s"] - 0.5)  # the official actions then begin before the clips end
    lists = epic_lists.epic100(tmp_path / "lists", early, [], [2], [1])
    with pytest.raises(OptionError, match=r"ends at 4.5 s, later than 0 s before its action at 4 s, as do 11 others"):
        submit(runs["label"], annotations=lists)


@pytest.mark.parametrize(
    ("sampled", "stated", "sentence"),
    [
        ({"lag": 0.0}, None, "later than 0.25 s before its action"),  # the last step lies where the action starts
        ({"lag": 0.5}, None, None),
        ({"lag": None}, None, "the last step of rulstm/rgb lies is not known.*state it with --lag"),
        ({"lag": None}, 0.25, None),
        ({"lag": None}, 0.0, "later than 0.25 s before"),
        ({"lag": 0.5}, 0.25, "was imported with --lag 0.5; leave it out"),
    ],
)
def test_features_nearer_to_the_action_than_their_answer_are_refused(
    table, epic100, tmp_path, sampled, stated, sentence
):
    shards = past_cache.write(tmp_path / "cache", table, {"rulstm/rgb": 6}, **sampled)
    run = kdcache.train("rulstm", shards, out=tmp_path / "run", **QUICK | {"epochs": 1}).path
    if sentence is None:
        assert submit(run, annotations=epic100, lag_s=stated).numbers
    else:
        with pytest.raises(OptionError, match=sentence):
            submit(run, annotations=epic100, lag_s=stated)


def test_class_numbers_of_another_edition_are_refused(runs, table, tmp_path):
    lists = epic_lists.epic100(tmp_path / "lists", table.assign(verb=table["verb"] + 1), [], [2], [1])
    with pytest.raises(OptionError, match=r"validation-0 has verb 0 in the cache and 1 in .*: the annotations and the"):
        submit(runs["label"], annotations=lists)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tau_s": 0.9}, "does not answer 0.9 s ahead: its answers are at tau_s 2, 1.75"),
        ({"out": "a.zip"}, "give sls=PT-TL-TD"),
        ({"out": "a.zip", "sls": "1-3"}, "sls=1-3: give the levels"),
        ({"out": "a.zip", "sls": "1-3-6"}, "each of them from 0 to 5"),
        ({"out": "a.txt", "sls": "1-3-3"}, r"a.txt: the name of a submission ends in .zip"),
        ({"dataset": "epic56"}, "did you mean 'epic55'"),
        ({"dataset": "epic55", "out": "a.zip"}, r"has no EPIC_test_s1_timestamps.csv: put it there"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(runs, epic100, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=sentence):
        submit(runs["label"], annotations=epic100, **options)
    assert not list(tmp_path.iterdir())


def test_annotations_of_neither_or_both_editions(runs, epic100, epic55, tmp_path):
    with pytest.raises(OptionError, match="has no official annotations of EPIC-KITCHENS"):
        open_challenge(tmp_path)
    for folder in (epic100, epic55[1]):
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OptionError, match="both editions: say which"):
        open_challenge(tmp_path)
    assert submit(runs["label"], annotations=tmp_path, dataset="epic100").measured_on == 12


@pytest.fixture(scope="module")
def right(runs, epic100, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("right") / "test.json"
    submit(runs["label"], path, annotations=epic100, sls="1-3-3")
    return path.read_text()


def edited(**changes: Any):
    return lambda s: s.update(changes)


def in_first(task: str, **changes: Any):
    return lambda s: s["results"]["test-0"][task].update(changes)


def without_actions(*uids: str):
    def change(s):
        for uid in uids:
            del s["results"][uid]["action"]

    return change


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (edited(version="0.1"), ["version is '0.1'; it must be '0.2'"]),
        (
            edited(challenge="action_recognition"),
            ["challenge is 'action_recognition'; it must be"],
        ),
        (lambda s: s.pop("sls_tl"), ["sls_tl is missing; declare a supervision level from 0 to 5"]),
        (edited(sls_pt=6, sls_td="3"), ["sls_pt is 6; it must be a whole number", "sls_td is '3'; it must be"]),
        (lambda s: s.pop("results"), ["results is missing"]),
        (edited(results=[1]), ["results is no table of segments"]),
        (lambda s: s["results"].pop("test-3"), ["1 of 8 segments are missing, the first is test-3"]),
        (
            lambda s: s["results"].update({"P01_1_0": s["results"]["test-0"]}),
            ["1 segments are not in the official list, the first is P01_1_0"],
        ),
        (lambda s: s["results"].update({"test-0": 1}), ["segment test-0: is no table"]),
        (lambda s: s["results"]["test-0"].pop("verb"), ["segment test-0: has no verb scores"]),
        (
            lambda s: s["results"]["test-0"]["verb"].pop("96"),
            ["lacks scores of verb classes, for instance 96"],
        ),
        (in_first("noun", **{"300": 0.1}), ["'300' is no noun class (0 to 299)"]),
        (in_first("noun", **{"7": math.nan}), ["the score of noun 7 is nan; it must be a finite number"]),
        (in_first("verb", **{"7": "0.5"}), ["the score of verb 7 is '0.5'"]),
        (in_first("verb", **{"7": True}), ["the score of verb 7 is True"]),
        (in_first("action", **{"96,299": 0.1}), ["has scores of 101 actions; there must be 100"]),
        (
            lambda s: (in_first("action", **{"1;2": 0.1})(s), s["results"]["test-0"]["action"].pop("0,3")),
            ["'1;2' is no action; write verb,noun such as 3,25"],
        ),
        (
            lambda s: (in_first("action", **{"97,0": 0.1})(s), s["results"]["test-0"]["action"].pop("0,3")),
            ["action 97,0 has a verb or noun that does not exist"],
        ),
        (
            without_actions("test-1", "test-5"),
            ["segment test-1 and 1 more: action scores must be given for all"],
        ),
        (without_actions(*(f"test-{i}" for i in range(8))), []),  # the server makes them of verbs and nouns
    ],
)
def test_problems_of_a_file_are_one_sentence_each(right, epic100, tmp_path, change, sentences):
    submission = json.loads(right)
    change(submission)
    (tmp_path / "test.json").write_text(json.dumps(submission))
    found, _ = check(tmp_path / "test.json", epic100)
    assert len(found) == len(sentences), found
    assert all(wanted in sentence for wanted, sentence in zip(sentences, found, strict=True)), found


def test_files_that_cannot_be_read(right, epic100, tmp_path):
    (tmp_path / "a.json").write_text(right[:-20])
    with pytest.raises(SourceError, match=r"a.json: cannot be read as JSON"):
        check(tmp_path / "a.json", epic100)
    (tmp_path / "a.json").write_text(right.replace('"version": "0.2"', '"version": "0.2", "version": "0.1"'))
    with pytest.raises(SourceError, match="key 'version' occurs twice"):
        check(tmp_path / "a.json", epic100)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(SourceError, match="is no JSON object"):
        check(tmp_path / "a.json", epic100)
    (tmp_path / "a.zip").write_text(right)
    with pytest.raises(SourceError, match=r"cannot be read as a zip .*a plain file is named .json"):
        check(tmp_path / "a.zip", epic100)


def test_archives_hold_the_files_of_the_server_and_no_others(right, epic100, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../evil.json", "{}")
        archive.writestr("folder/test.json", right)
    found, _ = check(tmp_path / "a.zip", epic100)
    assert len(found) == 2
    assert "a.zip: test.json is missing." in found[0]
    assert "'../evil.json' and 1 more do not belong there; the archive holds test.json alone." in found[1]
    assert not (tmp_path.parent / "evil.json").exists()


def test_files_without_actions_are_measured_by_products(runs, epic100, tmp_path):
    path = tmp_path / "validation.json"
    submit([runs["verb"], runs["noun"]], path, annotations=epic100, split="validation", sls="1-3-3")
    whole = check(path, epic100)[1].numbers
    submission = json.loads(path.read_text())
    for entry in submission["results"].values():
        del entry["action"]
        for task in ("verb", "noun"):  # the official code takes scores for logits
            entry[task] = {c: math.log(max(s, 1e-30)) for c, s in entry[task].items()}
    path.write_text(json.dumps(submission))
    sentences, found = check(path, epic100)
    assert sentences == []
    assert found.numbers == pytest.approx(whole)


def test_the_command(runs, epic100, tmp_path):
    def run(*arguments: Any, status: int = 0) -> str:
        result = CliRunner().invoke(main, ["submit", *map(str, arguments), "--annotations", str(epic100)])
        assert result.exit_code == status, result.output
        return result.output

    path = tmp_path / "test.zip"
    said = run(runs["label"], "--sls", "1-3-3", "-o", path)
    assert f"{path}: test.json, 8 segments\n" in said
    assert "epic100, 12 labelled segments:\nmean top-5 recall, %\n" in said
    assert [line.split()[0] for line in said.splitlines()[-4:]] == ["verb", "overall", "unseen", "tail"]
    assert run("--check", path) == f"{path}: test.json, 8 segments\n"
    assert set(json.loads(run(runs["label"], "--json"))["numbers"]) >= {"overall_action_mt5r", "tail_noun_mt5r"}
    assert "leave out RUNS" in run(runs["label"], "--check", path, status=1)
    assert "leave out RUNS" in run("--check", path, "--fill", status=1)
    assert "Name at least one run" in run(status=1)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test.json", '{"version": "0.2"}')
    assert "challenge is missing" in run("--check", path, status=1)


def test_official_lists(shared):
    folder = shared / "data" / "annotations"
    epic55, epic100 = (open_challenge(folder / edition) for edition in ("epic55", "epic100"))
    assert {name: len(epic55.segments(csv)) for name, csv in epic55.tests.items()} == {
        "seen.json": 8047,
        "unseen.json": 2929,
    }
    assert {name: len(epic100.segments(csv)) for name, csv in epic100.lists.items()} == {
        "test.json": 13092,
        "validation.json": 9668,
    }
    for challenge in (epic55, epic100):
        labelled = challenge.segments(challenge.labelled)
        assert labelled.index.is_unique
        assert labelled["verb"].max() < challenge.verbs
        assert labelled["noun"].max() < challenge.nouns
        classes = pd.read_csv(next(challenge.folder.glob("*verb_classes.csv")))
        assert len(classes) == challenge.verbs
    # what is certain of all segments has all of what can be reached
    labelled = epic55.segments(epic55.labelled).head(400)
    perfect = EpicScores(
        np.eye(125)[labelled["verb"]],
        np.eye(352)[labelled["noun"]],
        np.ones((400, 1)),
        action_ids(labelled["verb"], labelled["noun"])[:, None],
    )
    assert set(epic55.measure(perfect, labelled).values()) == {100.0}


def test_a_real_list_is_written_and_checked(shared, tmp_path):
    """The first segments of both official test sets of EPIC-55, through the writer and the checker."""
    lists = shared / "data" / "annotations" / "epic55"
    for name in ("EPIC_test_s1_timestamps.csv", "EPIC_test_s2_timestamps.csv"):
        (tmp_path / name).write_text("".join((lists / name).read_text().splitlines(keepends=True)[:101]))
    challenge, rng = open_challenge(tmp_path), np.random.default_rng(0)
    ids = np.tile(action_ids(np.arange(100), np.arange(100)), (100, 1))
    files = {}
    for name, csv in challenge.tests.items():
        uids = list(challenge.segments(csv).index)
        scores = EpicScores(rng.random((100, 125)), rng.random((100, 352)), rng.random((100, 100)), ids)
        files[name] = SegmentScores(uids, scores)
    write_file(tmp_path / "out.zip", challenge, files, None)
    sentences, found = check(tmp_path / "out.zip", tmp_path)
    assert sentences == []
    assert found.segments == {"seen.json": 100, "unseen.json": 100}
    swapped = {"seen.json": files["unseen.json"], "unseen.json": files["seen.json"]}
    write_file(tmp_path / "out.zip", challenge, swapped, None)
    assert len(check(tmp_path / "out.zip", tmp_path)[0]) == 4  # each lacks its own segments and has others
    bad = EpicScores(np.full((100, 125), np.nan), rng.random((100, 352)), rng.random((100, 100)), ids)
    with pytest.raises(OptionError, match=r"seen.json: segment 1924 and 99 more: the score of verb 0 is nan"):
        write_file(
            tmp_path / "bad.zip", challenge, {**files, "seen.json": SegmentScores(files["seen.json"].uids, bad)}, None
        )
    assert not (tmp_path / "bad.zip").exists()
