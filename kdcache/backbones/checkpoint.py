"""Opening checkpoints without running code from them, and filling networks with them, strictly."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.backbones.base import Backbone, State
from kdcache.backbones.metadata import read_metadata
from kdcache.backbones.published import ADAPTED
from kdcache.backbones.spec import Weights
from kdcache.backbones.weights import FITTED, Choice, resolve
from kdcache.errors import WeightsError
from kdcache.log import logger

Net = TypeVar("Net", bound=nn.Module)

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which training scripts put the parameters
_COUNTER = "num_batches_tracked"  # absent from checkpoints older than PyTorch 0.4.1, and of no use here


def load(
    name: str, make: Callable[[int | None], Backbone], weights: Weights | Choice = None, num_classes: int | None = None
) -> Backbone:
    """The backbone that ``make(num_classes)`` gives, with the weights that ``weights`` means; see ``build``."""
    choice = resolve(name, weights)
    with torch.device("meta"):
        net = make(num_classes)
    if choice.path is None:
        fill(net, random_init(net, choice.seed or 0), choice.identity()["spec"])
    else:
        state = net.adapt(load_state_dict(choice.path))
        metadata = read_metadata(choice.path)
        if metadata is not None and metadata.backbone not in (name, ADAPTED.get(name)):
            advice = f", or fit {name} with `kdcache fit {name}`" * (name in FITTED)
            raise WeightsError(
                f"{choice.path} was fitted as {metadata.backbone}, not as {name}: give it to "
                f"{metadata.backbone}{advice}."
            )
        if num_classes is None and net.classifier and net.classifier[-1] in state:
            with torch.device("meta"):
                net = make(int(state[net.classifier[-1]].shape[0]))
        fill(net, state, choice.path, classifier=net.classifier if num_classes else ())
        if metadata is not None:
            net.load_metadata(metadata)
    net.weights_id = choice.identity()
    return net.eval()


def load_state_dict(path: str | os.PathLike[str]) -> State:
    """The tensors of a ``.safetensors`` file or of anything that ``torch.save`` wrote, by name, on the CPU.

    Pickles are opened with ``weights_only=True``: nothing in them can run. A training script's wrapper dict and the
    prefix ``module.`` of ``nn.DataParallel`` are taken off. Raises ``WeightsError`` naming the file.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            _refuse_inflating(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except Exception as error:  # a damaged file raises almost anything, memory that it asks for included
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise WeightsError(
            f"{path} is not a checkpoint of plain tensors ({reason}): it is damaged, of another format, or holds more "
            f"than tensors; download it again, or save its state_dict as .safetensors."
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, Tensor) and v.layout == torch.strided and not v.is_meta for v in content.values())
    ):
        raise WeightsError(f"{path} holds no state dict (a dict of named tensors); save the network's state_dict().")
    state = {str(k): v for k, v in content.items()}
    while all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def _refuse_inflating(path: Path) -> None:
    """``ValueError`` for an archive whose members are together larger than itself: torch writes them as they are."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inflated = sum(member.file_size for member in archive.infolist())
    if inflated > path.stat().st_size:
        raise ValueError(f"its members would take {inflated} bytes of memory, more than the file")


def fill(
    net: Net,
    state: Mapping[str, Tensor],
    source: str | os.PathLike[str],
    *,
    part: bool = False,
    classifier: tuple[str, ...] = (),
    seed: int = 0,
) -> Net:
    """Load ``state`` into ``net`` in place, every name and shape checked; returns ``net``.

    Args:
        net: on the CPU, or on the meta device, whose parameters are then replaced.
        state: tensors by name, as ``load_state_dict`` gives them.
        source: the file's name, for errors.
        part: ``net`` is a part of the network that ``state`` is of: names beyond it are left alone.
        classifier: parameters that get new random values (by ``seed``) where their number of classes differs.

    Raises:
        WeightsError: a parameter is missing, not wanted, or of another shape: the file, the first one in the network's
            order, what was expected and found, and what network the file looks like.
    """
    expected = net.state_dict()
    chosen: State = {}
    for name, own in expected.items():
        found = state.get(name)
        if found is None and name.endswith(_COUNTER):
            found = torch.zeros((), dtype=torch.int64)
        if name in classifier and found is not None and found.shape[1:] == own.shape[1:] and found.shape != own.shape:
            if name == classifier[-1]:
                logger.warning("%s has %d classes: the classifier for %d starts anew", source, len(found), len(own))
            found = _random_tensor(name, own, seed, classifier)
        if found is None or found.shape != own.shape:
            has = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise _misfit(source, f"{name} {has}, expected {list(own.shape)}", state)
        chosen[name] = found.to(own.dtype)
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise WeightsError(
                f"{os.fspath(source)}: {name} holds values that are not finite (NaN or infinite), so that features "
                "would be, too; take another checkpoint."
            )
    extra = [] if part else [name for name in state if name not in expected and not name.endswith(_COUNTER)]
    if extra:
        raise _misfit(source, f"{extra[0]} (and {len(extra) - 1} more) is not part of this network", state)
    net.load_state_dict(chosen, assign=any(p.is_meta for p in net.parameters()))
    return net


def random_init(net: nn.Module, seed: int) -> State:
    """Random weights under which activations keep their scale through the network (rule 1).

    Kernels are He-normal (fan-in, for ReLU), a classifier's have variance 1 / fan-in; batch norms are the identity,
    biases zero, unless the network's ``init_constant`` says otherwise. Each tensor has its own random generator, seeded
    by ``seed`` and its name, so a part of a network gets what the whole would.
    """
    classifier = tuple(getattr(net, "classifier", ()))
    state = {}
    for name, own in net.state_dict().items():
        constant = net.init_constant(name) if isinstance(net, Backbone) else None
        state[name] = (
            _random_tensor(name, own, seed, classifier) if constant is None else torch.full(own.shape, constant)
        )
    return state


def _random_tensor(name: str, own: Tensor, seed: int, classifier: tuple[str, ...]) -> Tensor:
    shape = tuple(own.shape)
    if own.ndim < 2:
        one = name.endswith(("running_var", ".weight"))
        return (torch.ones if one else torch.zeros)(shape, dtype=own.dtype)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    gain = 1.0 if name in classifier else 2.0
    values = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(gain / np.prod(shape[1:])))
    return torch.from_numpy(values).to(own.dtype)


def _misfit(source: str | os.PathLike[str], what: str, state: Mapping[str, Tensor]) -> WeightsError:
    return WeightsError(
        f"{os.fspath(source)} does not fit: {what}. It looks like {looks_like(state)}; give a checkpoint of the "
        f"network that was asked for."
    )


def looks_like(state: Mapping[str, Tensor]) -> str:
    """What network a state dict seems to be of, in words for an error message."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    stem = shapes.get("Conv3d_1a_7x7.conv3d.weight")
    first = shapes.get("conv1.weight", ())
    if stem is not None:
        return f"an I3D with {stem[1]} input channels ({'i3d-flow' if stem[1] == 2 else 'i3d-rgb'})"
    if "Mixed_5c.b0.conv3d.weight" in shapes:
        return "the tail of an I3D"
    if "conv3d_1a_7x7.conv3d.weight" in shapes:
        return "an I3D of another PyTorch port, whose parameters have other names"
    if "base_model.conv1.weight" in shapes:
        return "a TSM ResNet (tsm-resnet50)"
    if "classifier.layer4.2.conv3.weight" in shapes:
        return "a VA-CNN (vacnn)"
    if "classifier.layer4.1.conv2.weight" in shapes:
        return "a small VA-CNN (vacnn-small)"
    if len(first) == 5:
        return "a 3-D ResNet or ResNeXt (resnext101)"
    if "layer4.2.conv3.weight" in shapes:
        return "a ResNet-50"
    if "layer4.2.conv2.weight" in shapes:
        return "a ResNet-34 (resnet34)"
    return f"no network known here ({len(shapes)} tensors, the first {next(iter(shapes), 'none')})"
