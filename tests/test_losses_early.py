"""Losses of early recognition and its baselines against loops over the equations, and limits that they must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdcache import losses

B, N, C, D = 3, 5, 4, 6


def random(seed: int, *shape: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def loop_kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(softmax(p), softmax(q), strict=True))


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def test_teacher_student_loss_is_equation_1():
    S, T = random(0, B, N, C), random(1, B, N, C)
    s, t = array(S), array(T)
    expected = [sum(loop_kl(t[b, n], s[b, n]) for n in range(N)) / N for b in range(B)]
    torch.testing.assert_close(losses.l_ts(S, T), torch.tensor(expected).float())


@pytest.mark.parametrize("tau", [1, 2, 4])
def test_self_loss_is_equation_2(tau):
    S = random(2, B, N, C)
    s = array(S)
    expected = [sum(loop_kl(s[b, n + tau], s[b, n]) for n in range(N - tau)) / (N - tau) for b in range(B)]
    for detach in (True, False):
        torch.testing.assert_close(losses.l_self(S, tau, detach), torch.tensor(expected).float())


def test_classification_loss_is_equation_3():
    S, y = random(3, B, N, C), torch.tensor([0, 3, 1])
    s = array(S)
    expected = [-sum(math.log(softmax(s[b, n])[y[b]]) for n in range(N)) / N for b in range(B)]
    torch.testing.assert_close(losses.l_cls(S, y), torch.tensor(expected).float())


def test_directions_matter():
    S, T = random(4, B, N, C), random(5, B, N, C)
    assert not torch.allclose(losses.l_ts(S, T), losses.l_ts(T, S), rtol=0.01)
    assert not torch.allclose(losses.l_self(S), losses.l_self(S.flip(1)), rtol=0.01)


def test_no_gradient_into_the_teacher():
    for loss in (losses.l_ts, losses.l_mse, losses.l_mmd):
        s, t = random(6, B, N, C).requires_grad_(), random(7, B, N, C).requires_grad_()
        loss(s, t).sum().backward()
        assert s.grad.abs().sum() > 0
        assert t.grad is None


def test_self_loss_moves_the_earlier_answer_alone_unless_asked():
    # With N = 2 the last answer is only a target: detached it has no gradient.
    for detach in (True, False):
        S = random(8, B, 2, C).requires_grad_()
        losses.l_self(S, 1, detach).sum().backward()
        assert S.grad[:, 0].abs().sum() > 0
        assert (S.grad[:, 1].abs().sum() > 0) != detach


def test_agreement_costs_nothing():
    S = random(9, B, 1, C).expand(B, N, C)
    shifted = S + random(10, B, N, 1)  # the same probabilities from other logits
    assert losses.l_self(shifted).abs().max() < 1e-6
    assert losses.l_ts(S, shifted).abs().max() < 1e-6
    assert losses.l_mse(S, S).abs().max() == 0
    assert losses.l_mmd(S, S).abs().max() < 1e-6
    assert losses.l_rank(S, torch.tensor([0, 1, 2])).abs().max() < 1e-6


def test_very_sure_networks_have_finite_losses_and_gradients():
    S = torch.tensor([[[2000.0, 0.0], [0.0, 2000.0]]]).requires_grad_()
    total = losses.l_self(S) + losses.l_ts(S, -S.detach()) + losses.l_rank(S, torch.tensor([0]))
    total.sum().backward()
    assert torch.isfinite(total).all()
    assert torch.isfinite(S.grad).all()


def test_mse_of_latents_is_the_squared_distance_averaged_over_levels():
    s, t = random(11, B, N, D), random(12, B, N, D)
    expected = [sum(((array(s)[b, n] - array(t)[b, n]) ** 2).sum() for n in range(N)) / N for b in range(B)]
    torch.testing.assert_close(losses.l_mse(s, t), torch.tensor(expected).float())


def loop_mmd(s: np.ndarray, t: np.ndarray) -> float:
    total = 0.0
    for n in range(s.shape[1]):
        z = np.concatenate([s[:, n], t[:, n]])
        pairs = sorted(((z[i] - z[j]) ** 2).sum() for i in range(len(z)) for j in range(i))
        median = pairs[(len(pairs) - 1) // 2]

        def k(u: np.ndarray, v: np.ndarray, median: float = median) -> float:
            return sum(math.exp(-((u - v) ** 2).sum() / (f * median)) for f in (0.25, 0.5, 1, 2, 4))

        B = len(s)
        for b in range(B):
            for c in range(B):
                total += (k(s[b, n], s[c, n]) + k(t[b, n], t[c, n]) - 2 * k(s[b, n], t[c, n])) / B**2
    return total / s.shape[1]


def test_mmd_equals_a_loop_over_kernels_and_belongs_to_the_batch():
    s, t = random(13, 4, N, D, scale=0.7), random(14, 4, N, D)
    got = losses.l_mmd(s, t)
    torch.testing.assert_close(got, torch.full((4,), loop_mmd(array(s), array(t))), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses.l_mmd(s, t[torch.tensor([2, 0, 3, 1])]), got)


def test_mmd_is_positive_and_its_gradient_is_finite_where_vectors_coincide():
    s = random(15, 1, N, D).expand(4, N, D).clone().requires_grad_()
    loss = losses.l_mmd(s, random(16, 4, N, D))
    loss.mean().backward()
    assert loss.min() > 0
    assert torch.isfinite(s.grad).all()


def loop_rank(p: np.ndarray, y: int, which: str) -> float:
    margin = [row[y] - max(v for c, v in enumerate(row) if c != y) for row in p]
    curves = {"score": [p[:, y]], "margin": [margin], "both": [p[:, y], margin]}[which]
    return sum(max(0.0, max(c[:n]) - c[n]) for c in curves for n in range(1, len(p))) / len(p)


@pytest.mark.parametrize("which", ["score", "margin", "both"])
def test_ranking_loss_equals_a_loop(which):
    S, y = random(17, B, N, C), [0, 3, 1]
    p = np.array([[softmax(row) for row in clip] for clip in array(S)])
    expected = [loop_rank(p[b], y[b], which) for b in range(B)]
    assert max(expected) > 0.1
    for detach in (True, False):
        torch.testing.assert_close(losses.l_rank(S, torch.tensor(y), which, detach), torch.tensor(expected).float())


def test_ranking_loss_is_zero_for_a_rising_score_and_mends_a_fall_at_its_end():
    rising = torch.zeros(1, N, C)
    rising[0, :, 2] = torch.arange(N)
    assert losses.l_rank(rising, torch.tensor([2])).item() == 0
    falling = rising.flip(1).requires_grad_()
    losses.l_rank(falling, torch.tensor([2])).sum().backward()
    assert falling.grad[0, 0].abs().sum() == 0
    assert (falling.grad[0, 1:, 2] < 0).all()  # descent raises the true class


def test_float32_under_autocast_and_one_value_for_each_sample():
    S, T, y = random(18, B, N, C), random(19, B, N, C), torch.tensor([0, 3, 1])
    low_s, low_t = S.bfloat16(), T.bfloat16()
    for loss in (
        lambda s, t: losses.l_ts(s, t),
        lambda s, t: losses.l_self(s),
        lambda s, t: losses.l_cls(s, y),
        lambda s, t: losses.l_mse(s, t),
        lambda s, t: losses.l_mmd(s, t),
        lambda s, t: losses.l_rank(s, y),
    ):
        expected = loss(low_s.float(), low_t.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = loss(low_s, low_t)
        assert got.dtype == torch.float32
        assert got.shape == (B,)
        torch.testing.assert_close(got, expected)
