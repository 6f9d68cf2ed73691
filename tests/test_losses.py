"""The losses against loops written from the equations, hand-computed cases, and the limits that the paper states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdcache import losses

DISTANCES = ["huber", "mse", "kl"]


def maps(seed: int = 0, shape: tuple[int, ...] = (2, 6, 2, 2, 3)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def columns(feature_map: torch.Tensor) -> list[np.ndarray]:
    return list(feature_map.double().reshape(feature_map.shape[0], -1).numpy().T)


def loop_phi(q: np.ndarray, K: list[np.ndarray], alpha: float) -> np.ndarray:
    weights = np.array([math.exp(alpha * sum(a * b for a, b in zip(q, k, strict=True))) for k in K])
    return sum(w * k for w, k in zip(weights / weights.sum(), K, strict=True))


def loop_distance(target: np.ndarray, value: np.ndarray, distance: str) -> float:
    if distance == "kl":
        t = np.exp(target) / np.exp(target).sum()
        v = np.exp(value) / np.exp(value).sum()
        return float(sum(a * math.log(a / b) for a, b in zip(t, v, strict=True)))
    total = 0.0
    for e in target - value:
        if distance == "mse":
            total += e * e
        else:
            total += e * e / 2 if abs(e) <= 1 else abs(e) - 0.5
    return float(total)


def loop_tilde(queries: str, A: torch.Tensor, R: torch.Tensor, alpha: float, distance: str, reduction: str) -> float:
    a, r = columns(A), columns(R)
    total = 0.0
    for q in a if queries == "A" else r:
        total += loop_distance(loop_phi(q, r, alpha), loop_phi(q, a, alpha), distance)
    count = len(a) * (1 if distance == "kl" else len(a[0]))
    return total / count if reduction == "mean" else total


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.7])
def test_directions_equal_a_loop_over_the_equations(distance, reduction, alpha):
    A, R = maps()
    A, R = 1.5 * A, 1.5 * R  # beyond the Huber threshold too
    used = 1 / math.sqrt(6) if alpha is None else alpha
    options = {"alpha": alpha, "distance": distance, "reduction": reduction}
    for which, queries in (("AR", "A"), ("RA", "R")):
        expected = [loop_tilde(queries, a, r, used, distance, reduction) for a, r in zip(A, R, strict=True)]
        got = losses.l_d(A, R, which, **options)
        torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    both = losses.l_d(A, R, "AR", **options) + losses.l_d(A, R, "RA", **options)
    torch.testing.assert_close(losses.l_d(A, R, "both", **options), both)


@pytest.mark.parametrize("distance", DISTANCES)
def test_direct_equals_a_loop(distance):
    A, R = maps(1)
    for reduction in ("mean", "sum"):
        expected = []
        for a, r in zip(A, R, strict=True):
            each = [loop_distance(x, y, distance) for x, y in zip(columns(r), columns(a), strict=True)]
            scale = 1 if distance == "kl" else len(columns(a)[0])
            expected.append(sum(each) / (len(each) * scale) if reduction == "mean" else sum(each))
        torch.testing.assert_close(
            losses.l_direct(A, R, distance, reduction), torch.tensor(expected), rtol=1e-4, atol=1e-6
        )


def test_small_case_computed_by_hand():
    # d = 1, two positions: A = (0, ln 3), R = (0, 1), alpha = 1.
    A = torch.tensor([[[0.0, math.log(3.0)]]])
    R = torch.tensor([[[0.0, 1.0]]])
    # a1 = 0 weighs alike: phi(a1, R) = 1/2, phi(a1, A) = ln3/2.
    # a2 = ln 3: exp(ln3 * r) = (1, 3): phi(a2, R) = 3/4; exp(ln3 * a) = (1, 3^ln3): phi(a2, A) = ln3 * w.
    w = 3 ** math.log(3) / (1 + 3 ** math.log(3))
    expected = (0.5 - math.log(3) / 2) ** 2 + (0.75 - math.log(3) * w) ** 2
    got = losses.l_d(A, R, "AR", alpha=1.0, distance="mse", reduction="sum")
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_alpha_zero_is_average_pooling_and_large_alpha_the_most_similar_vector():
    A, R = (losses.vectors(m) for m in maps(2))
    average = R.mean(1, keepdim=True).expand_as(A)
    torch.testing.assert_close(losses.phi(A, R, 0.0), average)
    nearest = torch.stack([r[(a @ r.T).argmax(-1)] for a, r in zip(A, R, strict=True)])
    torch.testing.assert_close(losses.phi(A, R, 1e6), nearest)


def test_default_alpha_is_one_over_root_d():
    A, R = (losses.vectors(m) for m in maps(3))
    torch.testing.assert_close(losses.phi(A, R), losses.phi(A, R, 1 / math.sqrt(6)))


@pytest.mark.parametrize("distance", DISTANCES)
def test_permuting_the_positions_of_r_changes_only_the_direct_loss(distance):
    A, R = maps(4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    permuted = R.flatten(2)[..., order].reshape(R.shape)
    for which in ("AR", "RA", "both"):
        torch.testing.assert_close(
            losses.l_d(A, R, which, distance=distance), losses.l_d(A, permuted, which, distance=distance)
        )
    assert not torch.allclose(losses.l_direct(A, R, distance), losses.l_direct(A, permuted, distance))


def test_equal_maps_cost_nothing():
    A, _ = maps(5)
    for distance in DISTANCES:
        assert losses.l_d(A, A.clone(), distance=distance).abs().max() < 1e-6
        assert losses.l_direct(A, A.clone(), distance).abs().max() < 1e-6


@pytest.mark.parametrize("which", ["AR", "RA", "both"])
def test_gradient_reaches_a_and_never_r(which):
    A, R = (m.requires_grad_() for m in maps(6))
    losses.l_d(A, R, which).sum().backward()
    assert A.grad is not None
    assert A.grad.abs().sum() > 0
    assert R.grad is None
    B, T = (m.requires_grad_() for m in maps(6))
    losses.l_direct(B, T).sum().backward()
    assert B.grad is not None
    assert T.grad is None


def test_gradient_agrees_with_finite_differences():
    A, R = (m.double() for m in maps(7, (1, 3, 1, 1, 2)))
    a, r = A.flatten(2).transpose(1, 2), R.flatten(2).transpose(1, 2)
    assert torch.autograd.gradcheck(lambda x: losses.l_tilde(x, x, r), (a.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda x: losses.l_tilde(r, x, r), (a,))


def test_stopgrad_query_keeps_the_value_and_changes_the_gradient():
    values, gradients = [], []
    for stop in (False, True):
        A, R = maps(8)
        A.requires_grad_()
        loss = losses.l_d(A, R, "AR", stopgrad_query=stop).sum()
        (gradient,) = torch.autograd.grad(loss, A)
        values.append(loss.detach())
        gradients.append(gradient)
    torch.testing.assert_close(values[0], values[1])
    assert not torch.allclose(gradients[0], gradients[1])


def test_maps_of_different_sizes_can_be_compared_by_attention():
    A, _ = maps(9, (2, 6, 2, 2, 3))
    _, R = maps(9, (2, 6, 1, 2, 2))
    assert losses.l_d(A, R, "AR").shape == (2,)
    assert torch.isfinite(losses.l_d(A, R)).all()


def test_kl_with_hard_labels_is_cross_entropy_and_equals_one_hot_soft_targets():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 3, 1, 2, 3])
    expected = -torch.log_softmax(logits, -1)[torch.arange(5), y]
    torch.testing.assert_close(losses.l_c(logits, y), expected)
    nearly_one_hot = torch.full((5, 4), -200.0)
    nearly_one_hot[torch.arange(5), y] = 200.0
    torch.testing.assert_close(losses.l_c(logits, nearly_one_hot), expected)


def test_soft_targets_give_kl_divergence_and_vanish_at_the_target():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert losses.l_c(q.log(), p.log()).item() == pytest.approx(expected, rel=1e-5)
    assert losses.l_c(p.log() + 3.0, p.log()).abs().item() < 1e-6


def test_temperature_keeps_the_size_of_the_gradient():
    # For small logits the gradient of T² KL(softmax(t/T) ‖ softmax(s/T)) tends to (s - t)/C for zero-mean logits.
    target = torch.tensor([[0.02, -0.01, -0.01]])
    for temperature in (1.0, 4.0):
        logits = torch.tensor([[-0.01, 0.02, -0.01]], requires_grad=True)
        losses.l_c(logits, target, temperature).sum().backward()
        torch.testing.assert_close(logits.grad, (logits.detach() - target) / 3, rtol=0.05, atol=1e-4)


def test_half_precision_maps_are_pooled_in_float32_under_autocast():
    A, R = (20 * m.abs() for m in maps(10))  # dot products in the hundreds
    expected = losses.l_d(A.bfloat16().float(), R.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = losses.l_d(A.bfloat16(), R.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


def test_attention_entropy_is_one_for_averages_and_zero_for_a_single_vector():
    A, R = (losses.vectors(m) for m in maps(11))
    torch.testing.assert_close(losses.attention_entropy(A, R, 0.0), torch.ones(2))
    assert losses.attention_entropy(A, R, 1e4).max() < 1e-3
