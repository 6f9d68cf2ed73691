"""I3D's plan: its blocks, layer names, aliases and output shapes, without torch.

Source: Carreira & Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, figure 3; channels and names as in the
published checkpoints. There is no ``Mixed_4a`` in the network: ``mixed4a`` is the output of ``MaxPool3d_4a_3x3``,
the input of ``Mixed_4b``.
"""

from __future__ import annotations

from kdcache.errors import OptionError, unknown

# name: (channels, kernel, stride)
CONVS = {"Conv3d_1a_7x7": (64, 7, 2), "Conv3d_2b_1x1": (64, 1, 1), "Conv3d_2c_3x3": (192, 3, 1)}
# name: (kernel, stride), each over (time, height, width)
POOLS = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
# name: channels of b0, b1a, b1b, b2a, b2b, b3b; the output is b0 + b1b + b2b + b3b
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
BLOCKS = (
    *("Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "MaxPool3d_3a_3x3"),
    *("Mixed_3b", "Mixed_3c", "MaxPool3d_4a_3x3"),
    *("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "MaxPool3d_5a_2x2"),
    *("Mixed_5b", "Mixed_5c"),
)
HEAD = ("pool", "Logits")  # behind the blocks: pooled vector [1024]; scores at each time step [classes, time]
ORDER = (*BLOCKS, *HEAD)
ALIASES = {"mixed4a": "MaxPool3d_4a_3x3", "logits": "Logits", **{n.lower().replace("_", ""): n for n in MIXED}}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one dimension, (front, back): output = ceil(size / stride), back ≥ front."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def with_aliases(order: tuple[str, ...] = ORDER) -> tuple[str, ...]:
    """``order`` with each layer followed by its alias, if it has one."""
    short = {full: alias for alias, full in ALIASES.items()}
    return tuple(n for name in order for n in (name, short.get(name)) if n is not None)


def resolve(layer: str, order: tuple[str, ...] = ORDER) -> str:
    """The published name behind ``layer`` (a name or an alias); ``OptionError`` if it is not in ``order``."""
    name = ALIASES.get(layer, layer)
    if name not in order:
        raise unknown("layer", layer, with_aliases(order))
    return name


def width(block: str, channels: int) -> int:
    """Output channels of ``block`` for an input of ``channels``."""
    if block in MIXED:
        b0, _, b1, _, b2, b3 = MIXED[block]
        return b0 + b1 + b2 + b3
    return CONVS[block][0] if block in CONVS else channels


def shape(layer: str, channels: int, frames: int, size: int, num_classes: int = 400) -> tuple[int, ...]:
    """Output shape of ``layer`` for one ``[channels, frames, size, size]`` input.

    Raises ``OptionError`` for an unknown layer, or for too few frames for ``pool`` and ``Logits``.
    """
    wanted = resolve(layer)
    t, s = frames, size
    for name in BLOCKS:
        if name in POOLS:
            (st, ss) = POOLS[name][1][0], POOLS[name][1][1]
        else:
            st = ss = CONVS[name][2] if name in CONVS else 1
        t, s, channels = -(-t // st), -(-s // ss), width(name, channels)
        if name == wanted:
            return (channels, t, s, s)
    steps = pooled_steps(t)
    return (channels,) if wanted == "pool" else (num_classes, steps)


def axes(layer: str) -> str:
    """Axes of ``layer`` in the order of ``shape``; class scores are vectors, here one a time step."""
    return {"pool": "D", "Logits": "DT"}.get(resolve(layer), "CTHW")


def pooled_steps(steps: int) -> int:
    """Time steps behind the last average pool (2 wide, stride 1) for ``steps`` before it; ``OptionError`` if none."""
    if steps < 2:
        raise OptionError(
            "I3D's last average pool spans 2 time steps and this clip leaves 1: give at least 9 frames "
            "(3 time steps at mixed4a), for example by sampling the clip more densely or repeating its last frame."
        )
    return steps - 1
