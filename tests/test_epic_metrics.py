"""The official numbers of the EPIC-KITCHENS anticipation challenges, against cases worked out on paper and against a
slow implementation that follows the official loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from kdcache.metrics.epic import (
    NEVER,
    EpicScores,
    EpicTruth,
    action_ids,
    best_actions,
    listed_ranks,
    mean_recall,
    measure_epic55,
    measure_epic100,
    precision_recall,
)

CLASSES = 8


def favouring(*best: Sequence[int]) -> np.ndarray:
    """Scores [n, 8] whose ranking of each row begins with the given classes; the others follow, all at 0."""
    scores = np.zeros((len(best), CLASSES))
    for row, classes in zip(scores, best, strict=True):
        row[list(classes)] = 10.0 - np.arange(len(classes))
    return scores


def actions(*best: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and class numbers [n, A] of listed actions, the best first."""
    ids = np.array([[1000 * v + n for v, n in row] for row in best])
    return np.tile(1.0 - np.arange(ids.shape[1]) / 10, (len(ids), 1)), ids


def test_action_numbers():
    assert action_ids(np.array([0, 0, 1, 124]), np.array([0, 351, 0, 7])).tolist() == [0, 351, 1000, 124007]


def test_ranks_of_listed_actions_with_ties_and_absent_classes():
    scores = np.array([[0.5, 0.3, 0.3], [0.2, 0.2, 0.2], [0.9, 0.8, 0.7], [0.0, 0.0, 0.0]])
    ids = np.array([[1001, 2002, 7], [5, 6, 7], [1, 2, 3], [1, 2, 3]])
    # 7 ties with 2002, whose number is higher and comes first: 1001, 2002, 7. Of three equals 7 is first, 5 last.
    # 4 is not scored: never, even where fewer than five are listed. Zeros are scores like others.
    assert listed_ranks(scores, ids, np.array([7, 5, 4, 3])).tolist() == [2, 2, NEVER, 0]
    with pytest.raises(ValueError, match="finite"):
        listed_ranks(np.array([[np.nan]]), np.array([[1]]), np.array([1]))


def test_mean_recall_averages_over_classes_that_occur():
    rank = np.array([0, 4, 5, 5, 2, NEVER])
    y = np.array([3, 3, 3, 3, 9, 1])
    # class 3: ranks 0 and 4 are below 5, two of four = 1/2; class 9: 1 of 1; class 1: 0 of 1. (1/2 + 1 + 0) / 3 = 1/2
    assert mean_recall(rank, y) == pytest.approx(50)
    # k = 1: class 3 has one of four, the others none: (1/4) / 3
    assert mean_recall(rank, y, 1) == pytest.approx(100 / 12)
    assert math.isnan(mean_recall(rank[:0], y[:0]))


@pytest.fixture
def nine() -> tuple[EpicScores, EpicTruth, np.ndarray]:
    """Five segments; the last two are of an unseen participant. Tail: verb 2, nouns 4 and 5."""
    truth = EpicTruth(np.array([0, 0, 1, 2, 2]), np.array([3, 4, 3, 5, 3]))
    # Where fewer than five classes are favoured, the rest ties at 0 and the higher number comes first: after (1,)
    # follow 7, 6, 5, 4, so class 0 is not among the five and neither is 2 after (1,).
    verb = favouring([0], [1], [1], [2], [1])
    #        true 0: yes  0: no  1: yes 2: yes 2: no
    noun = favouring([0, 1, 3], [0], [1, 2, 0, 7, 6], [0, 1, 2, 4, 5], [3])
    #        true 3: third   4: 0 7 6 5 4, fifth   3: sixth or later   5: fifth   3: first
    score, ids = actions(
        [(0, 3), (0, 4), (0, 5), (1, 3), (1, 4), (2, 3)],  # 0,3: first
        [(1, 3), (1, 4), (0, 3), (2, 3), (0, 5), (0, 4)],  # 0,4: sixth, no
        [(1, 4), (1, 3), (0, 3), (0, 4), (0, 5), (2, 3)],  # 1,3: second
        [(0, 3), (0, 4), (0, 5), (1, 3), (1, 4), (2, 3)],  # 2,5: not listed, no
        [(0, 3), (0, 4), (0, 5), (1, 3), (2, 3), (1, 4)],  # 2,3: fifth
    )
    return EpicScores(verb, noun, score, ids), truth, np.array([False, False, False, True, True])


def test_the_nine_numbers_of_epic100_by_hand(nine):
    scores, truth, unseen = nine
    expected = {
        # overall: verb 0: 1/2, verb 1: 1/1, verb 2: 1/2 → 2/3
        "overall_verb_mt5r": (1 / 2 + 1 + 1 / 2) / 3,
        # noun 3 (segments 1, 3, 5): yes, no, yes = 2/3; noun 4: yes; noun 5: yes → (2/3 + 1 + 1) / 3
        "overall_noun_mt5r": (2 / 3 + 1 + 1) / 3,
        # five different actions: yes, no, yes, no, yes
        "overall_action_mt5r": 3 / 5,
        # unseen: segments 4 and 5, verb 2 alone: 1/2
        "unseen_verb_mt5r": 1 / 2,
        # noun 5: yes; noun 3: yes
        "unseen_noun_mt5r": 1.0,
        # 2,5: no; 2,3: yes
        "unseen_action_mt5r": 1 / 2,
        # tail verbs: segments of verb 2: 1/2. Class 0 and 1 are no part of the mean, right as they may be
        "tail_verb_mt5r": 1 / 2,
        # tail nouns 4 (segment 2: yes) and 5 (segment 4: yes); noun 3 of segment 5 is not in the tail
        "tail_noun_mt5r": 1.0,
        # tail actions: verb 2 or noun 4 or 5, segments 2 (no), 4 (no), 5 (yes: by its verb)
        "tail_action_mt5r": 1 / 3,
    }
    found = measure_epic100(scores, truth, unseen, {2}, [4, 5])
    assert list(found) == list(expected)
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_parts_without_segments_have_no_number(nine):
    scores, truth, unseen = nine
    found = measure_epic100(scores, truth, np.zeros_like(unseen), {7}, [])
    assert all(math.isnan(found[f"{part}_{task}_mt5r"]) for part in ("unseen", "tail") for task in ("verb", "noun"))
    assert found["overall_action_mt5r"] == pytest.approx(60)


def test_the_numbers_of_epic55_by_hand(nine):
    scores, truth, _ = nine
    # Answers. verb: 0 1 1 2 1 against 0 0 1 2 2. noun: 0 0 1 0 3 against 3 4 3 5 3.
    # action: (0,3) (1,3) (1,4) (0,3) (0,3) against (0,3) (0,4) (1,3) (2,5) (2,3).
    many_shot = {"verb": {0, 2, 6}, "noun": [3, 5, 7], "action": [3, 1003, 2003, 4004]}
    expected = {
        "verb_top1": 3 / 5,
        "verb_top5": 3 / 5,  # segments 1, 3, 4 as above
        # verb 6 never occurs and takes no part. 0: one answer, right: 1. 2: one answer, right: 1
        "verb_precision": (1 + 1) / 2,
        # 0: one of two; 2: one of two
        "verb_recall": (1 / 2 + 1 / 2) / 2,
        "noun_top1": 1 / 5,
        "noun_top5": 4 / 5,
        # 3: one answer, right: 1. 5: never answered: 0, and it counts
        "noun_precision": (1 + 0) / 2,
        # 3: one of three; 5: none of one
        "noun_recall": (1 / 3 + 0) / 2,
        "action_top1": 1 / 5,
        "action_top5": 3 / 5,
        # 0,3: three answers, one right. 1,3: one answer, wrong. 2,3: never answered. 4,4 does not occur
        "action_precision": (1 / 3 + 0 + 0) / 3,
        # 0,3: one of one; 1,3 and 2,3: none of one
        "action_recall": (1 + 0 + 0) / 3,
    }
    found = measure_epic55(scores, truth, many_shot)
    assert list(found) == list(expected)
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_many_shot_classes_that_never_occur_leave_no_number():
    assert precision_recall(np.array([1]), np.array([1]), [2]) == pytest.approx((math.nan, math.nan), nan_ok=True)
    # answered twice, once right; one of one found
    assert precision_recall(np.array([1, 1]), np.array([1, 2]), [1]) == (50.0, 100.0)


def test_the_answer_of_equal_scores_is_the_highest_class():
    scores = EpicScores(np.zeros((1, 3)), np.zeros((1, 4)), np.zeros((1, 2)), np.array([[2003, 1]]))
    found = measure_epic55(
        scores, EpicTruth(np.array([2]), np.array([3])), {"verb": [2], "noun": [3], "action": [2003]}
    )
    assert [found[f"{task}_{m}"] for task in ("verb", "noun", "action") for m in ("top1", "precision")] == [100.0] * 6


def test_best_actions_are_in_the_order_of_their_numbers():
    scores, ids = best_actions(np.array([[0.1, 0.4, 0.1, 0.3], [1.0, 0.0, 0.0, 0.0]]), np.array([2, 5, 1001, 7000]), 3)
    assert ids.tolist() == [[5, 1001, 7000], [2, 1001, 7000]]  # 2 and 1001 tie: the higher number stays
    assert scores.tolist() == [[0.4, 0.1, 0.3], [1.0, 0.0, 0.0]]


def test_scores_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="do not go together"):
        EpicScores(np.zeros((2, 3)), np.zeros((1, 4)), np.zeros((2, 2)), np.zeros((2, 2), int))


def slow_mt5r(rankings: list[list[int]], labels: list[int], keep: list[bool]) -> float:
    """The official ``mean_topk_recall`` with plain loops over ranked lists."""
    recalls = {}
    for ranking, label, kept in zip(rankings, labels, keep, strict=True):
        if kept:
            recalls.setdefault(label, []).append(label in ranking[:5])
    return 100 * sum(sum(hits) / len(hits) for hits in recalls.values()) / len(recalls)


def test_the_nine_numbers_on_the_validation_set_of_epic100(shared):
    """All 9,668 segments with drawn scores (many equal ones), counted again from sorted lists."""
    folder = shared / "data" / "annotations" / "epic100"
    table = pd.read_csv(folder / "EPIC_100_validation.csv").sample(frac=1, random_state=0)
    tail_verbs = pd.read_csv(folder / "EPIC_100_tail_verbs.csv")["verb"].tolist()
    tail_nouns = pd.read_csv(folder / "EPIC_100_tail_nouns.csv")["noun"].tolist()
    people = pd.read_csv(folder / "EPIC_100_unseen_participant_ids_validation.csv")["participant_id"].tolist()
    truth = EpicTruth(table["verb_class"].to_numpy(), table["noun_class"].to_numpy())
    rng, n = np.random.default_rng(0), len(table)
    ids = np.unique(truth.action)
    drawn = {"verb": rng.integers(0, 60, (n, 97)), "noun": rng.integers(0, 90, (n, 300))}
    drawn["action"] = rng.integers(0, 200, (n, len(ids)))
    for task, column in (("verb", truth.verb), ("noun", truth.noun), ("action", np.searchsorted(ids, truth.action))):
        lucky = rng.random(n) < 0.3
        drawn[task][lucky, column[lucky]] += 200
    action, action_id = best_actions(drawn["action"].astype(np.float64), ids, 100)
    scores = EpicScores(drawn["verb"].astype(np.float64), drawn["noun"].astype(np.float64), action, action_id)
    found = measure_epic100(scores, truth, table["participant_id"].isin(people).to_numpy(), tail_verbs, tail_nouns)

    numbers = {"verb": list(range(97)), "noun": list(range(300)), "action": ids.tolist()}
    labels = {task: getattr(truth, task).tolist() for task in numbers}
    ranked = {
        task: [
            [c for _, c in sorted(zip(row, numbers[task], strict=True), reverse=True)[:5]]
            for row in drawn[task].tolist()
        ]
        for task in numbers
    }
    of_tail = {"verb": [v in tail_verbs for v in labels["verb"]], "noun": [c in tail_nouns for c in labels["noun"]]}
    of_tail["action"] = [a or b for a, b in zip(of_tail["verb"], of_tail["noun"], strict=True)]
    new = [p in people for p in table["participant_id"]]
    assert (sum(new), sum(of_tail["verb"]), sum(of_tail["noun"]), sum(of_tail["action"])) == (1065, 1760, 1900, 3105)
    for task in numbers:
        for part, keep in (("overall", [True] * n), ("unseen", new), ("tail", of_tail[task])):
            assert found[f"{part}_{task}_mt5r"] == pytest.approx(slow_mt5r(ranked[task], labels[task], keep)), (
                part,
                task,
            )
    assert 20 < found["overall_action_mt5r"] < 45
