"""The parameters of several networks of one shape side by side, and steps of SGD on all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from kdcache.methods.contract import Stage

RATES = ("lr", "momentum", "weight_decay")
"""Settings of SGD that may differ from head to head."""


class Stack:
    """What stages of one shape train: ``[heads, …]`` each, of which a head's own parameters and buffers are views.

    So each stage's module, optimiser and schedule stay what they are to everyone else: they are scored, scheduled and
    saved as those of a stage that trains alone. ``release`` gives a head tensors of its own again, ``attach`` takes
    them back.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.modules, self.optimizers = [stage.module for stage in stages], [optimizer_of(stage) for stage in stages]
        parameters = [dict(module.named_parameters()) for module in self.modules]
        group_of = {id(p): n for n, group in enumerate(self.optimizers[0].param_groups) for p in group["params"]}
        self.trained = [name for name, parameter in parameters[0].items() if id(parameter) in group_of]
        """Names of what moves."""
        self._group = {name: group_of[id(parameters[0][name])] for name in self.trained}
        self.values = {name: torch.stack([own[name].detach() for own in parameters]) for name in parameters[0]}
        self.buffers = {
            name: torch.stack([module.get_buffer(name) for module in self.modules])
            for name, _ in self.modules[0].named_buffers()
        }
        self._untouched = {name: value.clone() for name, value in self.buffers.items()}  # until the first step
        self._momenta = {
            name: torch.stack([_momentum(o, own[name]) for o, own in zip(self.optimizers, parameters, strict=True)])
            for name in self.trained
            if any(o.param_groups[self._group[name]]["momentum"] for o in self.optimizers)
        }
        for name in self.trained:
            self.values[name].requires_grad_()
        for head in range(len(self.modules)):
            self.attach(head)

    def attach(self, head: int) -> None:
        """Make a head's parameters, buffers and momenta views of the stack."""
        self._point(head, lambda stacked: stacked[head])

    def release(self, head: int) -> None:
        """Give a head tensors of its own, with the values of now."""
        self._point(head, lambda stacked: stacked[head].clone())
        for layer in self.modules[head].modules():
            if isinstance(layer, nn.RNNBase):
                layer.flatten_parameters()

    def restore(self) -> None:
        """Undo what forward passes did to buffers before the first step."""
        for name, value in self._untouched.items():
            self.buffers[name].copy_(value)

    @torch.no_grad()
    def _point(self, head: int, of: Callable[[Tensor], Tensor]) -> None:
        module, state = self.modules[head], self.optimizers[head].state
        for name, stacked in self.values.items():
            module.get_parameter(name).data = of(stacked.detach())
        for name, stacked in self.buffers.items():
            module.get_buffer(name).data = of(stacked)
        for name, stacked in self._momenta.items():
            state[module.get_parameter(name)]["momentum_buffer"] = of(stacked)

    def rates(self) -> list[dict[str, Tensor]]:
        """Rate, momentum and weight decay of each of the optimisers' groups, ``[heads]``; schedules change them."""
        device, found = next(iter(self.values.values())).device, list[dict[str, Tensor]]()
        for group in range(len(self.optimizers[0].param_groups)):
            own = [optimizer.param_groups[group] for optimizer in self.optimizers]
            found.append({name: torch.tensor([float(each[name]) for each in own]).to(device) for name in RATES})
        return found

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], rates: Sequence[dict[str, Tensor]], largest: float) -> None:
        """One step of every head, as ``clip_grad_norm_`` and ``torch.optim.SGD`` take it.

        Args:
            gradients: of ``trained``, in this order, ``[heads, …]``; they are overwritten. None: not moved.
            rates: see ``rates``.
            largest: norm of a head's gradient; 0 does not clip.
        """
        self._untouched = {}
        for optimizer in self.optimizers:
            setattr(optimizer, "_opt_called", True)  # noqa: B010  schedules warn where nobody has called its step
        there = [
            (name, gradient) for name, gradient in zip(self.trained, gradients, strict=True) if gradient is not None
        ]
        if largest:
            norms = torch.stack([gradient.flatten(1).norm(dim=1) for _, gradient in there])
            factor = (largest / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)
        for name, gradient in there:
            own, value = rates[self._group[name]], self.values[name]
            if largest:
                gradient.mul_(_along(factor, gradient))
            gradient.addcmul_(value, _along(own["weight_decay"], value))
            if name in self._momenta:
                gradient = self._momenta[name].mul_(_along(own["momentum"], value)).add_(gradient)
            value.addcmul_(gradient, _along(-own["lr"], value))


def why_not_stacked(stages: Sequence[Stage]) -> str:
    """Why stages cannot be stacked, in words; empty where they can."""
    first = stages[0]
    shapes = [{name: (p.shape, p.dtype) for name, p in stage.module.state_dict().items()} for stage in stages]
    if any(other != shapes[0] for other in shapes[1:]):
        return "their networks differ in shape"
    for stage in stages:
        optimizer, own = stage.optimizer, {id(p) for p in stage.module.parameters()}
        if type(optimizer) is not SGD:
            return f"they are trained by {type(optimizer).__name__}, not by SGD"
        if len(optimizer.param_groups) != len(optimizer_of(first).param_groups):
            return "their parameters are in groups of their own"
        for group in optimizer.param_groups:
            if group["dampening"] or group["nesterov"] or group["maximize"]:
                return "their SGD dampens, looks ahead or climbs"
            if any(id(parameter) not in own for parameter in group["params"]):
                return "they move parameters outside of their network"
    return ""


def optimizer_of(stage: Stage) -> Optimizer:
    """The optimiser of a stage that trains."""
    assert stage.optimizer is not None, stage.name
    return stage.optimizer


def _momentum(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor:
    """As SGD has it; zeros before its first step, which come to the same."""
    kept: Tensor | None = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
    return torch.zeros_like(parameter) if kept is None else kept


def _along(of_heads: Tensor, like: Tensor) -> Tensor:
    """``[heads]`` → ``[heads, 1, …]``."""
    return of_heads.view(-1, *(1,) * (like.ndim - 1))
