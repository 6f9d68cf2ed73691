"""Skeleton sequences → images for VA-CNN: rows are time, columns are joints, the three channels are x, y and z.

Source: Zhang et al., "View adaptive neural networks for high performance skeleton-based human action recognition",
TPAMI 2019, and its code (microsoft/View-Adaptive-Neural-Networks-for-Skeleton-based-Human-Action-Recognition,
``data_cnn.py`` and ``data/ntu/seq_transformation.py``).

What that code does with people and joints that are missing, and so does this:

- The whole sequence is moved so that the middle joint of the first body, where that body is first seen, is the origin;
  a body stays at zero in frames in which it was not seen. A single joint that was lost, at (0, 0, 0) in the file,
  counts as seen there and moves along.
- Frames in which no body was seen are left out, so the image's time is that of visible frames.
- Of two bodies, one that is never seen is left out: 25 columns instead of 50 before resizing.
- Files without any joint stop that code with an error; here readers refuse them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.errors import OptionError, unknown
from kdcache.levels import LevelSpec, Mode, level_spans
from kdcache.skeletons.base import Joints, Skeleton

Resize = Literal["scipy_bytescale", "float_bilinear"]
RESIZES: tuple[Resize, ...] = ("scipy_bytescale", "float_bilinear")

NTU_LIMITS = (-5.28981208801, 5.18858098984)  # smallest and largest coordinate over NTU RGB+D after centring [code]
SIDE = 224
TURN = 0.3  # radians: the largest turn of the training augmentation, about each axis [code]


@dataclass(frozen=True)
class Imaging:
    """How a clip's joints become images: one for each level, seen straight and from turned views."""

    progress: LevelSpec
    limits: tuple[float, float] = NTU_LIMITS
    resize: Resize = "scipy_bytescale"
    rotations: int = 0

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise unknown("skeleton", self.resize, RESIZES)
        if self.rotations < 0:
            raise OptionError(f"rotations is {self.rotations}: give the number of turned views, or 0.")

    def images(self, skeleton: Skeleton, seed: int) -> NDArray[Any]:
        """Images of one clip, uint8 or float32 [1 + rotations, levels, 224, 224, 3]; the first view is not turned.

        View v is turned by angles drawn from (``seed``, v), the same at every level: U(-0.3, 0.3) rad about each axis,
        about z alone for joints in the plane [reconstructed: the paper draws new angles in every epoch].
        """
        angles = [None, *(turn(seed, v, planar=skeleton.planar) for v in range(1, 1 + self.rotations))]
        levels, mode = self.progress.levels, self.progress.mode
        return np.stack([level_images(skeleton, levels, mode, self.limits, self.resize, a) for a in angles])

    def to_recipe(self) -> dict[str, Any]:
        """As it stands in a recipe."""
        return {
            **self.progress.to_recipe(),
            "limits": list(self.limits),
            "resize": self.resize,
            "rotations": self.rotations,
        }

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> Imaging:
        """The images that ``to_recipe`` wrote."""
        levels = LevelSpec(recipe["levels"], recipe["mode"])
        low, high = recipe["limits"]
        return cls(levels, (low, high), recipe["resize"], recipe["rotations"])


def turn(seed: int, view: int, *, planar: bool = False) -> NDArray[np.float32]:
    """The angles of a turned view, float32 [3], radians about x, y and z: a function of ``seed`` and ``view`` alone."""
    return random_angles(np.random.default_rng([seed, view]), planar=planar)


def random_angles(rng: np.random.Generator, *, planar: bool = False) -> NDArray[np.float32]:
    """The next turn of the augmentation, float32 [3], uniform in ±0.3 rad about x, y and z [code].

    Args:
        rng: three numbers are drawn from it, whether or not all are used.
        planar: the joints have no depth, so they turn within their plane: about z alone [reconstructed].
    """
    angles = rng.uniform(-TURN, TURN, 3).astype(np.float32)
    if planar:
        angles[:2] = 0
    return angles


def centred(joints: Joints, per_body: int, centre: int) -> Joints:
    """Move a sequence so that the first body's middle joint starts at the origin.

    Args:
        joints: float32 [T, bodies × per_body, 3]; a body of zeros was not seen in that frame, and stays zero.
        per_body: joints of one body.
        centre: index of the middle joint (NTU: 1, mid spine).

    Returns:
        A new array. When the first body is never seen, the first one seen takes its place [reconstructed: the
        published code stops with an error].
    """
    bodies = joints.reshape(len(joints), -1, per_body, 3)
    seen = np.asarray(bodies.any(axis=(2, 3)))
    if not seen.any():
        return joints.copy()
    body = int(np.argmax(seen.any(axis=0)))
    origin = bodies[int(np.argmax(seen[:, body])), body, centre]
    moved = np.where(seen[:, :, None, None], bodies - origin, np.float32(0))
    return np.asarray(moved, np.float32).reshape(joints.shape)


def visible(joints: Joints, per_body: int) -> Joints:
    """Leave out frames without a body and bodies that are never seen; a sequence of zeros gives one frame of zeros."""
    bodies = joints[joints.any(axis=(1, 2))].reshape(-1, joints.shape[1] // per_body, per_body, 3)
    if not len(bodies):
        return np.zeros((1, per_body, 3), np.float32)
    return bodies[:, bodies.any(axis=(0, 2, 3))].reshape(len(bodies), -1, 3)


def limits_of(skeletons: Iterable[Skeleton]) -> tuple[float, float]:
    """Smallest and largest coordinate over a data set, centred: the c_min and c_max of its images.

    Give the training clips only (the published code takes all of them, test clips too).
    """
    shown = [visible(centred(s.joints, s.per_body, s.centre), s.per_body) for s in skeletons]
    if not shown:
        raise OptionError("No skeletons to take limits from: give the training clips.")
    return float(min(s.min() for s in shown)), float(max(s.max() for s in shown))


def skeleton_image(
    joints: Joints,
    per_body: int,
    limits: tuple[float, float] = NTU_LIMITS,
    resize: Resize = "scipy_bytescale",
    side: int = SIDE,
) -> NDArray[Any]:
    """One image of a centred sequence.

    P = 255 (S − c_min) / (c_max − c_min), resized to ``side`` × ``side``. The network takes 110 off it.

    Args:
        joints: float32 [T, bodies × per_body, 3], centred; any number of joints (2-D ones with z = 0).
        per_body: joints of one body.
        limits: c_min and c_max of the data set.
        resize: ``scipy_bytescale`` is what the published code does: ``scipy.misc.imresize``, which no longer exists,
            first stretches each image to 0 … 255 by its own minimum and maximum and rounds it, then resizes with
            Pillow's bilinear filter. The limits cancel out there; they still enter the view transform.
            ``float_bilinear`` is the paper's formula: plain bilinear interpolation in float32.
        side: rows and columns.

    Returns:
        uint8 (``scipy_bytescale``) or float32 [side, side, 3], (time, joint, xyz). A sequence in which no body is
        seen is a frame of zeros [reconstructed]. The old function took the time of a 3-frame sequence for its colour
        channels; this does not.

    Raises:
        OptionError: an unknown ``resize``, or limits that are no interval.
    """
    low, high = limits
    if not low < high:
        raise OptionError(f"Limits {low:g}, {high:g}: give the smallest coordinate, then a larger one.")
    scaled = 255 * (visible(joints, per_body) - np.float32(low)) / np.float32(high - low)
    if resize == "scipy_bytescale":
        return np.asarray(Image.fromarray(bytescale(scaled)).resize((side, side), Image.Resampling.BILINEAR))
    if resize == "float_bilinear":
        return np.asarray(cv2.resize(scaled, (side, side), interpolation=cv2.INTER_LINEAR))
    raise unknown("resize", resize, RESIZES)


def bytescale(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch an array to 0 … 255 by its own extremes, as ``scipy.misc.bytescale`` did; a constant one gives 0."""
    low = values.min()
    span = float(values.max()) - float(low)
    stretched = np.clip((values - low) * np.float32(255.0 / (span or 1.0)), 0, 255)
    return np.asarray(stretched + np.float32(0.5), np.uint8)


def image_of(
    skeleton: Skeleton, limits: tuple[float, float] = NTU_LIMITS, resize: Resize = "scipy_bytescale"
) -> NDArray[Any]:
    """The image of a whole clip; see ``skeleton_image``."""
    return skeleton_image(
        centred(skeleton.joints, skeleton.per_body, skeleton.centre), skeleton.per_body, limits, resize
    )


def level_images(
    skeleton: Skeleton,
    levels: int = 10,
    mode: Mode = "prefix",
    limits: tuple[float, float] = NTU_LIMITS,
    resize: Resize = "scipy_bytescale",
    angles: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """One image for each level; image n does not depend on what follows part n.

    Each level is computed from the frames up to its end alone: NTU's actors, the origin, the stretch.

    Args:
        skeleton: one clip. Levels count the file's frames, lost ones too.
        levels: N.
        mode: ``prefix``: all frames up to the end of part n; ``segment``: those of part n alone.
        limits, resize: as in ``skeleton_image``.
        angles: turn the centred joints first, see ``rotated``.

    Returns:
        uint8 or float32 [levels, 224, 224, 3].
    """
    spans = level_spans(skeleton.total, levels, mode).tolist()
    return np.stack([level_image(skeleton, start, stop, limits, resize, angles) for start, stop in spans])


def level_image(
    skeleton: Skeleton,
    start: int,
    stop: int,
    limits: tuple[float, float],
    resize: Resize,
    angles: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """The image of one level: frames ``start`` to before ``stop``; what follows is not looked at."""
    known = skeleton.observed(stop)
    joints = centred(known.joints, known.per_body, known.centre)[known.frames >= start]
    if angles is not None:
        joints = rotated(joints, angles)
    return skeleton_image(joints, known.per_body, limits, resize)


def rotated(joints: Joints, angles: NDArray[np.float32]) -> Joints:
    """Turn a centred sequence by R_z R_y R_x: the training augmentation, each angle uniform in ±0.3 rad [code].

    Args:
        joints: float32 [T, J, 3].
        angles: float32 [3], radians about x, y and z.
    """
    import torch

    from kdcache.skeletons.rotation import rotation

    matrix: NDArray[np.float32] = rotation(torch.from_numpy(np.asarray(angles, np.float32)[None]))[0].numpy()
    return joints @ matrix.T
