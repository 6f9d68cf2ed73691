"""Metrics against cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.methods.contract import Data, Split
from kdcache.metrics import topk as metrics
from kdcache.runs.predictions import measure_all, parts_of

SCORES = np.array(
    [
        [0.7, 0.2, 0.1],  # 0: right
        [0.1, 0.6, 0.3],  # 2: second
        [0.2, 0.3, 0.5],  # 2: right
        [0.5, 0.3, 0.2],  # 2: third
        [0.1, 0.8, 0.1],  # 0: tied last with 2, which is ranked before it
    ]
)
Y = np.array([0, 2, 2, 2, 0])


def test_ranks_by_hand():
    assert metrics.ranks(SCORES, Y).tolist() == [0, 1, 0, 2, 2]


def test_top_k_and_recall_by_hand():
    assert metrics.top_k(SCORES, Y, 1) == pytest.approx(40)
    assert metrics.top_k(SCORES, Y, 2) == pytest.approx(60)
    assert metrics.top_k(SCORES, Y, 5) == 100  # fewer classes than five
    # Class 0: 1 of 2; class 2: 1 of 3; class 1 does not occur.
    assert metrics.class_mean_recall(SCORES, Y) == pytest.approx(100 * (1 / 2 + 1 / 3) / 2)
    assert metrics.class_mean_recall(SCORES, Y, 2) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert metrics.class_mean_recall(SCORES, Y, only={2}) == pytest.approx(100 / 3)
    assert np.isnan(metrics.class_mean_recall(SCORES, Y, only={1}))


def test_ties_rank_as_reversed_stable_argsort():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (200, 7)).astype(float)
    y = rng.integers(0, 7, 200)
    order = scores.argsort(axis=1, kind="stable")[:, ::-1]
    expected = (order == y[:, None]).argmax(axis=1)
    assert (metrics.ranks(scores, y) == expected).all()
    assert metrics.ranks(np.zeros((1, 3)), np.array([2])).tolist() == [0]
    assert metrics.ranks(np.zeros((1, 3)), np.array([0])).tolist() == [2]


def test_scores_that_are_not_finite_or_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        metrics.top_k(np.array([[0.0, np.nan]]), np.array([0]))
    with pytest.raises(ValueError, match="do not go together"):
        metrics.top_k(np.zeros((2, 3)), np.array([0]))


def test_no_samples_give_nan():
    assert np.isnan(metrics.top_k(np.zeros((0, 3)), np.array([], int)))


def test_verbs_are_sums_over_their_actions():
    probabilities = np.array([[0.4, 0.35, 0.25]])
    verbs = metrics.marginalise(probabilities, np.array([0, 1, 1]), 2)
    np.testing.assert_allclose(verbs, [[0.4, 0.6]])  # action 0 wins, verb 1 wins


def data_of(action: list[int], verb: list[int], classes: dict[str, list[int]]) -> Data:
    labels = {"label": torch.tensor(action), "verb": torch.tensor(verb)}
    samples = Split([str(i) for i in range(len(action))], {}, labels)
    return Data(
        splits={"train": samples, "validation": samples},
        classes=classes,
        inputs={},
        roles={},
        seed=0,
        device=torch.device("cpu"),
        autocast=None,
        batches=None,
        backbone=None,
    )


def test_verb_metrics_come_from_actions_that_have_one_verb_each():
    data = data_of([0, 1, 2, 2], [0, 1, 1, 1], {"label": [10, 11, 12], "verb": [3, 4]})
    assert parts_of(data, "label")["verb"].tolist() == [0, 1, 1]
    assert parts_of(data, "verb") == {}
    probabilities = np.array([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25]], np.float32)
    labels = {"label": torch.tensor([0, 1]), "verb": torch.tensor([0, 1])}
    measured = measure_all(probabilities, labels, data, "label")
    assert measured["label"]["top1"] == 50
    assert measured["verb"]["top1"] == 50  # verb 1 is predicted for both
    ambiguous = data_of([0, 0, 1], [0, 1, 1], {"label": [10, 11], "verb": [3, 4]})
    assert parts_of(ambiguous, "label") == {}


def test_many_shot_classes_are_those_with_more_training_samples():
    data = data_of([0, 0, 0, 1], [0, 0, 0, 0], {"label": [10, 11], "verb": [3]})
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1]], np.float32)
    labels = {"label": torch.tensor([0, 1]), "verb": torch.tensor([0, 0])}
    measured = measure_all(probabilities, labels, data, "label", many_shot=2)["label"]
    assert measured["class_mean_recall"] == 50
    assert measured["many_shot_recall"] == 100
