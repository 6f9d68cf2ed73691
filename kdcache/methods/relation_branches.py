"""F, A and S of relation distillation: what each starts from, what it reads, and which of its maps are compared."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdcache import backbones
from kdcache.backbones.i3d import I3D, I3DTail
from kdcache.backbones.resnext3d import ResNeXt3D, ResNeXt3DTail
from kdcache.backbones.weights import asked_by
from kdcache.errors import OptionError
from kdcache.methods.contract import Data, InputStream, reseed
from kdcache.methods.heads import LightHead, cells, initialise
from kdcache.methods.relation_networks import Branch, Net
from kdcache.methods.relation_options import NETWORKS, RelationOptions

READS = {"teacher": "flow", "appearance": "rgb", "student": "rgb"}
"""Stage → the input that its network reads."""
DEFAULT_TAPS = {"i3d": ("Mixed_4f", "Mixed_5c"), "maps": ("layer4",), "frames": ("layer3", "layer4")}
MOST_POSITIONS = 1024  # whose cosines are compared: 4 MB a clip


def branch(options: RelationOptions, data: Data, name: str, start: bool = False) -> Branch:
    """F, A or S on the device; ``start``: from the backbone's weights (of light heads random ones)."""
    seen, classes = READS[name], len(data.classes[options.target])
    at = seen if seen in data.inputs else "rgb"  # a finished run opens no flow, whose maps are of one shape with RGB's
    reseed(data, name)
    net: Net
    if options.light:
        net = LightHead(data.inputs[at].shape[0], classes, options.width, options.dropout)
    elif options.start == "maps":
        layer = data.layers[at]
        of_i3d = options.backbone == "i3d"
        net = I3DTail(classes, layer, options.dropout) if of_i3d else ResNeXt3DTail(classes, layer)
        if start:
            initialise(net, data.backbone(seen))
    else:
        channels = 2 if seen == "flow" else 3
        of_i3d = options.backbone == "i3d"
        net = I3D(classes, channels, options.dropout) if of_i3d else ResNeXt3D(classes, channels)
        if start:
            option, given = ("init_flow", options.init_flow) if seen == "flow" else ("init", options.init)
            with asked_by(f"--set {option}="):
                start_from = backbones.build(NETWORKS[options.backbone][seen == "flow"], given)
            initialise(net, start_from.state_dict())
    return Branch(net, options.compared if name != "appearance" else ()).to(data.device)


def stream(options: RelationOptions, data: Data, name: str) -> InputStream:
    """The input as branches read it: light heads on averages of 2 × 2 × 2 positions."""
    return data.inputs[name].map(cells) if options.light else data.inputs[name]


def as_read(options: RelationOptions, arrays: Tensor) -> Tensor:
    """A batch of an input as it is cached → as ``stream`` gives it."""
    return torch.stack([cells(array) for array in arrays]) if options.light else arrays


def check_shapes(options: RelationOptions, data: Data) -> None:
    """``OptionError`` for cached maps of other frames or another size than the options', where these say any."""
    if options.start == "frames" or (options.frames is None and options.size is None):
        return
    for name, stream in data.inputs.items():
        layer, network = data.layers.get(name), NETWORKS[options.backbone][name == "flow"]
        if not layer:  # imported
            continue
        _, expected = backbones.layer_shape(network, layer, options.T, options.S)
        if tuple(stream.shape) != tuple(expected):
            raise OptionError(
                f"frames={options.T} and size={options.S} give maps {list(expected)} of {layer}, and those cached for "
                f"{name} are {list(stream.shape)}: extract them with --frames {options.T} --size {options.S}, or set "
                "frames and size as they were extracted."
            )


def choose_taps(options: RelationOptions, data: Data) -> RelationOptions:
    """The options with the layers decided whose maps L_ir compares.

    Raises:
        OptionError: maps of RGB and flow that do not match; a layer that S does not train, for there L_ir would have no
            gradient; one that is no map, or of which there is no such relation.
    """
    shapes = {name: (*data.inputs[name].shape, data.layers.get(name, "")) for name in ("rgb", "flow")}
    if options.start == "maps" and shapes["rgb"] != shapes["flow"]:
        of = ", ".join(f"{name} {list(shape[:-1])} of {shape[-1]}" for name, shape in shapes.items())
        raise OptionError(f"S learns from F, and their cached maps differ ({of}): extract both alike.")
    if options.start == "maps" and len({data.sampled.get(name, "") for name in ("rgb", "flow")}) > 1:
        raise OptionError(
            "S learns from F, and their cached maps are of other frames of a clip, or of another size: extract both "
            "with the same --frames, --fps, --size and --resize."
        )
    if options.ir in ("none", "batch"):
        return options
    given = bool(options.taps)
    if not options.light:
        net = branch(options, data, "student").net
        assert not isinstance(net, LightHead)
        default = DEFAULT_TAPS["i3d" if options.backbone == "i3d" else options.start]
        taps = tuple(dict.fromkeys(_resolved(tap, net) for tap in options.taps or default))
        options = replace(options, taps=taps)
    probe, x = branch(options, data, "student").eval(), stream(options, data, "rgb")
    with torch.no_grad():
        shown = torch.zeros(1, *x.shape, device=data.device)
        found = probe(shown.byte() if options.start == "frames" else shown)
    if options.ir == "position" and not given:  # of the usual layers those with few positions
        small = tuple(tap for tap in options.taps if found[tap][0, 0].numel() <= MOST_POSITIONS)
        options = replace(options, taps=small or options.taps)
    for tap in options.compared:
        t, h, w = found[tap].shape[2:]
        if options.ir == "temporal" and t < 2:
            raise OptionError(f"ir=temporal: {tap} has a single time step here: take more frames, or another layer.")
        if options.ir == "position" and t * h * w == 1:
            raise OptionError(f"ir=position: {tap} has a single position here: choose an earlier layer.")
        if options.ir == "position" and t * h * w > MOST_POSITIONS:
            raise OptionError(
                f"ir=position: {tap} has {t * h * w} positions, and all pairs are compared: choose a later layer."
            )
    return options


def _resolved(tap: str, net: I3DTail | I3D | ResNeXt3D | ResNeXt3DTail) -> str:
    """The published name of a layer that is a map."""
    maps = net.order[:-2]
    try:
        name = net.resolve(tap)
    except OptionError:
        name = tap
    if name not in maps:
        raise OptionError(f"taps={tap}: S trains no map of that name: choose from {', '.join(maps)}.")
    return name
