"""Joints of any sensor as plain arrays: ``.npy`` or ``.npz``, whose centre joint and rate the user states."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError, SourceError, unknown
from kdcache.skeletons import npz
from kdcache.skeletons.base import Joints, Skeleton

SUFFIXES = (".npy", ".npz")
MOST_BODIES = 16  # more are taken for an axis of another meaning
STATE = "state them: extract --centre-joint 1 --skeleton-fps 30, fit --set centre_joint=1 --set skeleton_fps=30"


@dataclass(frozen=True)
class JointLayout:
    """What an array of joints does not say of itself.

    Attributes:
        centre: index of the joint in the middle of a body (spine, belly, hips), whose first position becomes the
            origin of images.
        fps: frames a second.
        array: name of the array in an ``.npz`` that holds several.
    """

    centre: int
    fps: float
    array: str | None = None

    def __post_init__(self) -> None:
        if self.centre < 0:
            raise OptionError(f"centre_joint is {self.centre}: joints are counted from 0.")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise OptionError(f"skeleton_fps is {self.fps}: give frames per second, above 0.")

    @classmethod
    def stated(cls, centre_joint: int | None, skeleton_fps: float | None, array: str | None) -> JointLayout | None:
        """The layout that options state; ``None`` where none of them is given, ``OptionError`` where one lacks."""
        if centre_joint is None and skeleton_fps is None and array is None:
            return None
        if centre_joint is None or skeleton_fps is None:
            raise OptionError(
                "centre_joint and skeleton_fps describe .npy and .npz skeleton files together: give both."
            )
        if not (centre_joint >= 0 and 0 < skeleton_fps < math.inf):
            raise OptionError(
                f"centre_joint={centre_joint} and skeleton_fps={skeleton_fps}: joints count from 0, rates are above 0."
            )
        return cls(centre_joint, float(skeleton_fps), array)

    def to_recipe(self) -> dict[str, Any]:
        """As it stands in a recipe."""
        return {"centre": self.centre, "fps": self.fps, **({} if self.array is None else {"array": self.array})}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> JointLayout:
        """The layout that ``to_recipe`` wrote."""
        return cls(recipe["centre"], recipe["fps"], recipe.get("array"))


def read_array(path: str | os.PathLike[str], layout: JointLayout | None) -> Skeleton:
    """The sequence in an array ``[T, J, 3]`` or ``[T, bodies, J, 3]``; 2 in place of 3 for joints in the plane (z = 0).

    Any real number type. A joint that is NaN was not seen: a body without any seen joint is at (0, 0, 0) in that frame,
    as in other formats; a single one is put at its body's centre joint, or where that is missing, too, at the mean
    of the joints that were seen in that frame [reconstructed].

    Raises:
        SourceError: no statement, a file that cannot be read, several arrays of which none is named, another shape, no
            such centre joint, infinite values, or no joint at all.
    """
    if layout is None:
        raise SourceError(f"{path}: an array says neither its centre joint nor its frame rate; {STATE}.")
    values = _values(path, layout.array)
    flat = values.ndim in (3, 4) and values.shape[-1] == 2
    if values.ndim not in (3, 4) or values.shape[-1] not in (2, 3) or 0 in values.shape:
        raise SourceError(
            f"{path}: the array is {list(values.shape)}; give [T, J, 3] or [T, bodies, J, 3], or 2 in place of 3."
        )
    bodies = np.asarray(values if values.ndim == 4 else values[:, None], np.float32)
    if bodies.shape[1] > MOST_BODIES:
        raise SourceError(
            f"{path}: the array is {list(values.shape)}, which is {bodies.shape[1]} bodies by [T, bodies, J, 3]; check "
            f"the order of its axes (up to {MOST_BODIES} bodies are taken)."
        )
    if np.isinf(bodies).any():
        raise SourceError(
            f"{path}: frame {int(np.isinf(bodies).any((1, 2, 3)).argmax())} holds an infinite joint; "
            "write NaN for joints that were not seen."
        )
    per_body = bodies.shape[2]
    if layout.centre >= per_body:
        raise SourceError(
            f"{path}: a body has joints 0 to {per_body - 1}, and centre_joint is {layout.centre}; choose one of them."
        )
    if flat:
        bodies = np.pad(bodies, ((0, 0), (0, 0), (0, 0), (0, 1)))
    joints = _filled(bodies, layout.centre).reshape(len(bodies), -1, 3)
    frames = np.arange(len(joints), dtype=np.int32)
    skeleton = Skeleton(joints, per_body, layout.centre, frames, len(joints), layout.fps, "array")
    if (problem := skeleton.problem()) is not None:
        raise SourceError(f"{path}: {problem}")
    return skeleton


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """The arrays of an ``.npz``; none of an ``.npy``, whose array has no name.

    Raises:
        SourceError: it cannot be read.
    """
    with _named(path):
        return npz.names_in(path)


def _values(path: str | os.PathLike[str], name: str | None) -> NDArray[Any]:
    names = array_names(path)
    archive = zipfile.is_zipfile(path)
    if not archive and name is not None:
        raise SourceError(f"{path}: holds one array without a name; leave array={name} out.")
    if archive and name is None and len(names) != 1:
        raise SourceError(
            f"{path}: holds the arrays {', '.join(names) or '(none)'}; name one: array=NAME (extract --array NAME)."
        )
    if archive and name is not None and name not in names:
        raise SourceError(f"{path}: {unknown('array', name, names)}")
    with _named(path):
        found = npz.read(path, name or names[0] if archive else None)
    if found.dtype.kind not in "fiu":
        raise SourceError(f"{path}: the array holds {found.dtype}; give joints as floating-point or whole numbers.")
    return found


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Every way in which reading a file fails as one sentence."""
    try:
        yield
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}); check the path.") from error
    except Exception as error:  # a damaged file fails in zipfile, zlib or numpy, each in its own way
        raise SourceError(
            f"{path}: damaged, or neither an array of joints nor JHMDB's ({error}); write it again."
        ) from error


def _filled(bodies: Joints, centre: int) -> Joints:
    """Bodies [T, bodies, J, 3] without NaN."""
    seen = np.asarray(~np.isnan(bodies).any(axis=-1))  # [T, bodies, J]
    if seen.all():
        return bodies
    known = np.where(seen[..., None], bodies, np.float32(0))
    mean = known.sum(axis=2) / np.maximum(seen.sum(axis=2), 1)[..., None].astype(np.float32)
    middle = np.where(seen[:, :, centre, None], bodies[:, :, centre], mean)  # zeros where nobody was seen
    return np.asarray(np.where(seen[..., None], bodies, middle[:, :, None]), np.float32)
