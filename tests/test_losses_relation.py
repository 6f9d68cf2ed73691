"""Losses of relation distillation against loops over their formulas, and the invariances that these imply."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kdcache import losses

SHAPE = (3, 4, 2, 3, 2)  # B, c, t, h, w: more positions than channels
WIDE = (3, 20, 2, 2, 1)  # more channels than positions


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu() + 0.1


def gram(X: torch.Tensor) -> torch.Tensor:
    """X Xᵀ of one map ``[c, …]``, entry by entry, in double precision."""
    X = X.double().flatten(1)
    c, M = X.shape
    found = torch.zeros(c, c, dtype=torch.float64)
    for i, j in itertools.product(range(c), range(c)):
        found[i, j] = sum(X[i, m] * X[j, m] for m in range(M))
    return found


def l_ir(S, F, kind="channel", **more):
    return losses.l_ir(S, losses.relation(F, kind), kind, **more)


def test_representation_loss_is_the_mean_square():
    s, f = random(0, 2, 3), random(1, 2, 3)
    expected = [sum(float(s[b, i] - f[b, i]) ** 2 for i in range(3)) / 3 for b in range(2)]
    torch.testing.assert_close(losses.l_rep(s, f), torch.tensor(expected))


@pytest.mark.parametrize("shape", [SHAPE, WIDE])
@pytest.mark.parametrize("through", ["channels", "positions", None])
def test_channel_relation_by_either_way(shape, through):
    S, F = random(0, *shape), random(1, *shape)
    (c, *position), expected, style = shape[1:], [], []
    M = math.prod(position)
    for s, f in zip(S, F, strict=True):
        G_s, G_f = gram(s) / (c * M), gram(f) / (c * M)
        expected.append(((G_s / G_s.norm() - G_f / G_f.norm()) ** 2).sum())
        style.append(((gram(s) - gram(f)) ** 2).sum() / (4 * c**2 * M**2))
    for norm, by_hand in (("frobenius", expected), ("gatys", style)):
        found = l_ir(S, F, norm=norm, through=through)
        torch.testing.assert_close(found.double(), torch.stack(by_hand), rtol=1e-5, atol=1e-6)


def test_both_ways_have_one_gradient():
    for norm in ("frobenius", "gatys"):
        of = []
        for through in ("channels", "positions"):
            S = random(0, *WIDE).requires_grad_()
            l_ir(S, random(1, *WIDE), norm=norm, through=through).sum().backward()
            of.append(S.grad)
        torch.testing.assert_close(*of, rtol=1e-4, atol=1e-6)


def test_a_channel_relation_of_two_by_two():
    """S = I has the Gram matrix I, F with two equal channels one of ones: ‖I/√2 - 1/2‖² = 2 (1/√2 - 1/2)² + 2/4."""
    S = torch.eye(2).view(1, 2, 2, 1, 1)
    F = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(1, 2, 2, 1, 1)
    torch.testing.assert_close(l_ir(S, F), torch.tensor([2 * (2**-0.5 - 0.5) ** 2 + 0.5]))


def test_channel_relation_does_not_see_where_things_are():
    S, F = random(0, *SHAPE), random(1, *SHAPE)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    moved = S.flatten(2)[:, :, order].view(SHAPE)
    torch.testing.assert_close(l_ir(moved, F), l_ir(S, F))
    torch.testing.assert_close(l_ir(3 * S, F), l_ir(S, F))  # nor how strong they are
    assert not torch.allclose(l_ir(S.flip(1), F), l_ir(S, F), rtol=0.01)  # but which channels go together
    assert not torch.allclose(l_ir(moved, F, "position"), l_ir(S, F, "position"), rtol=0.01)


@pytest.mark.parametrize("kind", ["position", "temporal"])
def test_cosines_of_positions_and_time_steps(kind):
    S, F = random(0, *SHAPE), random(1, *SHAPE)

    def cosines(x: torch.Tensor) -> torch.Tensor:
        columns = x.double().flatten(1) if kind == "position" else x.double().mean((2, 3))
        n = columns.shape[1]
        found = [
            [columns[:, i] @ columns[:, j] / (columns[:, i].norm() * columns[:, j].norm()) for j in range(n)]
            for i in range(n)
        ]
        return torch.tensor(found)

    expected = torch.stack([(cosines(s) - cosines(f)).square().mean() for s, f in zip(S, F, strict=True)])
    torch.testing.assert_close(l_ir(S, F, kind).double(), expected, rtol=1e-5, atol=1e-7)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(l_ir(S[:, order], F, kind), l_ir(S, F, kind))  # channels may be numbered otherwise


def test_batch_relation_is_that_of_its_paper():
    s, f = random(0, 3, 5), random(1, 3, 5)

    def rows(z: torch.Tensor) -> torch.Tensor:
        G = torch.tensor([[float(z[i] @ z[j]) for j in range(3)] for i in range(3)])
        return G / G.norm(dim=1, keepdim=True)

    expected = (rows(s) - rows(f)).square().sum() / 9
    torch.testing.assert_close(l_ir(s, f, "batch").mean(), expected)
    assert float(l_ir(s[:1], f[:1], "batch")) == 0  # one clip has no relation


@pytest.mark.parametrize("kind", ["channel", "position", "temporal"])
def test_equal_maps_lose_nothing_and_the_teacher_learns_nothing(kind):
    F = random(1, *WIDE).requires_grad_()
    assert float(l_ir(F.detach(), F, kind).abs().max()) < 1e-6
    S = random(0, *WIDE).requires_grad_()
    l_ir(S, F, kind).sum().backward()
    assert F.grad is None
    assert float(S.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["channel", "position", "temporal"])
def test_dead_maps_have_finite_losses_and_gradients(kind):
    for S, F in ((torch.zeros(SHAPE), random(1, *SHAPE)), (random(0, *SHAPE), torch.zeros(SHAPE))):
        S.requires_grad_()
        for norm in ("frobenius", "gatys") if kind == "channel" else ("frobenius",):
            loss = l_ir(S, F, kind, norm=norm)
            loss.sum().backward()
            assert torch.isfinite(loss).all()
            assert torch.isfinite(S.grad).all()


def test_computed_in_float32_inside_autocast():
    S, F = 100 * random(0, *SHAPE), 100 * random(1, *SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        inside = l_ir(S, F)
    assert torch.equal(inside, l_ir(S, F))


def test_what_is_kept_of_the_teacher_is_the_smallest():
    F = random(0, *SHAPE)
    shapes = {kind: tuple(losses.relation(F, kind).shape) for kind in ("channel", "position", "temporal")}
    assert shapes == {"channel": (3, 4, 12), "position": (3, 12, 12), "temporal": (3, 2, 2)}
