"""What of a module trains in a stage: the parameters of its optimiser; the rest takes no gradient and is not
updated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim import Optimizer


@contextmanager
def frozen_but(module: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Inside, only parameters that ``optimizer`` moves take gradients; afterwards all are as they were."""
    trainable = _ids(optimizer)
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in trainable)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def set_train_mode(module: nn.Module, optimizer: Optimizer) -> None:
    """Training mode, but for parts that have parameters of which none is trained: frozen parts and their batch norms.

    So a frozen batch norm keeps its running statistics, also within a layer whose convolutions are trained; a dropout
    belongs to the part around it.
    """
    _set_mode(module, _ids(optimizer), training=True)


def _set_mode(module: nn.Module, trainable: set[int], *, training: bool) -> None:
    own = {id(parameter) for parameter in module.parameters()}
    module.training = training and (not own or bool(own & trainable))
    for child in module.children():
        _set_mode(child, trainable, training=module.training)


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
