"""From one skeleton file to the images of its clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.errors import ClipError
from kdcache.extraction.motion import ClipInputs
from kdcache.extraction.plan import Task
from kdcache.recipe import clip_key
from kdcache.skeletons import Skeleton, open_skeleton
from kdcache.streams.base import Stream


@dataclass(frozen=True)
class ClipJoints:
    """One clip's joints."""

    task: Task
    skeleton: Skeleton


def read_joints(path: str, tasks: Sequence[Task]) -> Iterator[ClipJoints | tuple[Task, ClipError]]:
    """Open a skeleton file once and cut its clips, or say why one cannot be cut; ``SourceError`` if none can."""
    source = open_skeleton(path)
    for task in tasks:
        try:
            yield ClipJoints(task, source.span(task.start_s, task.stop_s))
        except ClipError as error:
            yield task, error


def draw(clip: ClipJoints, streams: Sequence[Stream]) -> ClipInputs:
    """The images of a clip for each stream, [V, N, 224, 224, 3].

    The frames noted for a level are one: the last that it shows. Turned views depend on the file's content and the
    span, not on the clip's name: another name for the same clip finds the same arrays.
    """
    skeleton, task = clip.skeleton, clip.task
    origin = {
        "fingerprint": task.fingerprint,
        "decoder": f"joints of {skeleton.kind}",
        "joints": skeleton.joints.shape[1],
        "fps": skeleton.fps,
        "frames": skeleton.total,
    }
    done = ClipInputs(task, origin, {})
    seed = int(clip_key("", task.fingerprint, task.start_s, task.stop_s), 16)
    for stream in streams:
        assert stream.imaging is not None
        last = stream.imaging.progress.spans(skeleton.total)[:, 1] - 1
        done.frames[stream.name] = (skeleton.begin + last).astype(np.int32)
        done.inputs[stream.name] = stream.imaging.images(skeleton, seed)
    return done
