"""Weights of networks from elsewhere: what the library publishes, a file, a builder's own; known by those in memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from kdcache.backbones.checkpoint import fill, load_state_dict
from kdcache.backbones.custom import external
from kdcache.backbones.external import (
    BUILT,
    HEAD,
    PRETRAINED,
    RANDOM,
    External,
    ExternalBackbone,
    last_module,
    state_digest,
)
from kdcache.backbones.metadata import read_metadata
from kdcache.backbones.spec import Weights
from kdcache.backbones.weights import Choice, of_folder, random_seed
from kdcache.errors import OptionError, WeightsError
from kdcache.log import logger

_announced: set[tuple[str, str]] = set()  # random weights are warned of once
_last: dict[tuple[str, Choice], ExternalBackbone] = {}
"""The network that was loaded last, so that what was made to know its digest is not made again at once."""


def choose(name: str, weights: Weights | Choice = None) -> Choice:
    """The weights that ``weights`` means, loaded once to know the digest of what is then in memory.

    Args:
        name: of a network from elsewhere.
        weights: a file with its state dict, a folder of ``kdcache fit --cross-fit``, ``random:SEED`` (the network's
            own initialisation after ``torch.manual_seed(SEED)``), ``pretrained`` (the library's), ``built`` (a
            builder's own); None: whichever of these it has.

    Raises:
        OptionError: a malformed text, or one that this network has not.
        WeightsError: no such file, one of another network, or weights that cannot be downloaded.
    """
    if isinstance(weights, Choice):
        return weights
    found = external(name)
    text = found.origin if weights is None else os.fspath(weights)
    seed = random_seed(text)
    path = cross = None
    if seed is None and not _known(found, text):
        path = Path(text)
        if path.is_dir():
            whole = of_folder(path)
            path, cross = whole.path, whole.cross_fit
        elif not path.is_file():
            raise WeightsError(f"{text}: no such weights file; give {name} a file, or random:0.")
    if seed is not None and (name, text) not in _announced:
        _announced.add((name, text))
        logger.warning("%s runs on RANDOM weights (%s): its features carry no learned meaning.", name, text)
    choice = Choice(path=path, seed=seed, spec=None if path or seed is not None else text)
    net = _load(found, choice, None)
    known = Choice(path=path, seed=seed, spec=choice.spec, state=state_digest(net), cross_fit=cross)
    _last.clear()
    _last[name, known] = net
    return known


def fresh(name: str, num_classes: int, seed: int) -> ExternalBackbone:
    """The network as its library draws it, or as its builder makes it, with a classifier: where training starts."""
    return _load(external(name), Choice(seed=seed), num_classes)


def forget() -> None:
    """Free the network that was loaded last."""
    _last.clear()


def build(name: str, weights: Weights | Choice = None, num_classes: int | None = None) -> ExternalBackbone:
    """The network with its weights, in evaluation mode; see ``kdcache.backbones.build``.

    Raises:
        WeightsError: as ``choose``, or weights in memory that are not those that were chosen before.
    """
    choice = weights if isinstance(weights, Choice) else choose(name, weights)
    kept = _last.pop((name, choice), None)
    net = kept if kept is not None and num_classes is None else _load(external(name), choice, num_classes)
    if num_classes is None and kept is None and choice.state is not None and state_digest(net) != choice.state:
        raise WeightsError(
            f"{name}: its weights are others than when they were chosen (digest {choice.state[:8]}…): a builder must "
            "give the same ones each time; load them from a file, or seed what is random."
        )
    net.weights_id = choice.identity()
    return net


def _known(found: External, text: str) -> bool:
    """Whether a text means weights of the library or of the builder."""
    if text not in (PRETRAINED, BUILT):
        return False
    if text != found.origin:
        raise OptionError(f"{found.name} has no {text} weights: give a file, or {found.origin}.")
    return True


def _load(found: External, choice: Choice, num_classes: int | None) -> ExternalBackbone:
    origin = choice.spec or (BUILT if found.origin == BUILT else RANDOM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed or 0)
        net = _made(found, origin)
    if choice.path is None:
        return ExternalBackbone(found, net, num_classes).eval()
    raw = load_state_dict(choice.path)
    metadata = read_metadata(choice.path)
    if metadata is not None and metadata.backbone != found.name:
        raise WeightsError(f"{choice.path} was fitted as {metadata.backbone}, not as {found.name}: give it to that.")
    fitted = metadata is not None  # then names are ours
    classes = int(raw[HEAD[0]].shape[0]) if fitted and num_classes is None else num_classes
    made = ExternalBackbone(found, net, classes)
    state = dict(raw) if fitted else made.adapt(raw)
    last = _last_layer(made)
    for name, own in made.state_dict().items():
        if name in last and (name not in state or state[name].shape != own.shape):
            state[name] = own  # a classifier for other classes stays as it was made
            made.unloaded = (*made.unloaded, name.removeprefix("net."))
    if made.unloaded:
        logger.warning("%s: %s is not taken from there (other classes)", choice.path, ", ".join(made.unloaded))
    if num_classes is not None:
        state |= {name: made.state_dict()[name] for name in HEAD}
    return fill(made, state, choice.path).eval()


def _made(found: External, origin: str) -> nn.Module:
    """The module; ``WeightsError`` where published weights cannot be had."""
    if not origin.startswith(PRETRAINED):
        return found.make(origin)
    try:
        return found.make(origin)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"The weights of {found.name} cannot be had ({reason}): download them where there is a network, name a "
            f"file with --weights {found.name}=FILE, or ask for --weights random:0."
        ) from error


def _last_layer(net: ExternalBackbone) -> tuple[str, ...]:
    """Parameters of the network's last module that has any: its classifier, where it has one."""
    owner = last_module(net.external)
    return tuple(f"net.{name}" for name, _ in net.net.named_parameters() if name.rpartition(".")[0] == owner)
