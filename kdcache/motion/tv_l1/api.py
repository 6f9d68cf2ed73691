"""TV-L1 optical flow of clips and of frame pairs by one of three engines.

``cpu`` gives OpenCV 5's result to the last bit on almost every pixel, at about a twentieth of its time;
``opencv`` is the reference itself; ``torch`` works on many pairs at once on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError, unknown
from kdcache.motion.frames import Clip, frames_of
from kdcache.motion.tv_l1.opencv import solve_pairs_opencv
from kdcache.motion.tv_l1.params import SMALLEST, TVL1Params

ENGINES = ("cpu", "opencv", "torch")
_FARTHEST = 1e6  # pixels that an initial flow may point


def tvl1(
    clip: Clip,
    engine: str = "cpu",
    params: TVL1Params | None = None,
    threads: int | None = None,
    device: str | None = None,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    fps: float | None = None,
    short_side: int | None = None,
) -> NDArray[np.float32]:
    """Flow between consecutive frames of a clip: float32 [T − 1, H, W, 2], pixels (x, y).

    ``clip`` is an array of grey frames, uint8 [T, H, W], or the path of a video, or of a folder or tar of frames, of
    which ``start_s``, ``stop_s``, ``fps`` and ``short_side`` say what is read (see ``kdcache.motion.frames``). All of
    it is held in memory: 8 bytes a pixel of each field. A clip of one frame gives [0, H, W, 2]. Other options and
    errors as ``tvl1_pairs``.
    """
    gray = frames_of(clip, start_s=start_s, stop_s=stop_s, fps=fps, short_side=short_side, gray=True)
    _check(gray, "a clip", "[T, H, W]")
    if len(gray) == 0:
        raise OptionError("TV-L1 got a clip without frames: give at least one.")
    return tvl1_pairs(gray[:-1], gray[1:], engine, params, threads=threads, device=device)


def tvl1_pairs(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    engine: str = "cpu",
    params: TVL1Params | None = None,
    initial: NDArray[np.float32] | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> NDArray[np.float32]:
    """Flow from each first frame to its second: uint8 [N, H, W] twice to float32 [N, H, W, 2], pixels (x, y).

    engine: ``cpu`` (compiled), ``opencv`` (reference) or ``torch`` (GPU; slow but right without one).
    params: see ``TVL1Params``. initial: flow to start from, float32 [N, H, W, 2] (OpenCV's useInitialFlow).
    threads: pairs at a time for ``cpu`` and ``opencv``, default all cores this process may use; the result
    does not depend on it. device: for ``torch``, for example ``cuda:1``; default CUDA where there is one.

    Raises OptionError for wrong dtypes, shapes, sizes under 3 × 3 and unknown engines, DeviceError for a
    device that is not there.
    """
    params = params or TVL1Params()
    if engine not in ENGINES:
        raise unknown("TV-L1 engine", engine, ENGINES)
    _check(first, "first frames", "[N, H, W]")
    _check(second, "second frames", "[N, H, W]")
    _check_options(first, second, engine, params, initial, threads, device)
    first, second = (np.require(frames, requirements=["C", "W"]) for frames in (first, second))
    if len(first) == 0:
        return np.zeros((*first.shape, 2), np.float32)
    if engine == "cpu":
        from kdcache.motion.tv_l1.cpu import solve_pairs

        return solve_pairs(first, second, initial, params, threads)[0]
    if engine == "opencv":
        return solve_pairs_opencv(first, second, initial, params, threads)
    from kdcache.motion.tv_l1.torch_engine import solve_pairs_torch

    return solve_pairs_torch(first, second, initial, params, device)


def _check(frames: Any, what: str, shape: str) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        kind = frames.dtype if isinstance(frames, np.ndarray) else type(frames).__name__
        raise OptionError(f"TV-L1 got {what} of {kind}: give grey frames as a uint8 array {shape}.")
    if frames.ndim != 3:
        raise OptionError(f"TV-L1 got {what} of shape {list(frames.shape)}: give grey frames {shape}.")
    if min(frames.shape[1:]) < SMALLEST:
        height, width = frames.shape[1:]
        raise OptionError(f"TV-L1 got frames of {width} × {height} pixels: {SMALLEST} × {SMALLEST} is the least.")


def _check_options(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    engine: str,
    params: TVL1Params,
    initial: NDArray[np.float32] | None,
    threads: int | None,
    device: str | None,
) -> None:
    if first.shape != second.shape:
        raise OptionError(
            f"TV-L1 got first frames {list(first.shape)} and second frames {list(second.shape)}: give equal shapes."
        )
    if params.gamma != 0 and engine != "opencv":
        raise OptionError(f"TV-L1 gamma is {params.gamma}: engine {engine!r} takes only 0; use engine 'opencv'.")
    if threads is not None and threads < 1:
        raise OptionError(f"TV-L1 threads is {threads}: give at least 1.")
    if device is not None and engine != "torch":
        raise OptionError(f"TV-L1 device {device!r} needs engine 'torch', not {engine!r}.")
    if initial is None:
        return
    if not isinstance(initial, np.ndarray) or initial.dtype != np.float32 or initial.shape != (*first.shape, 2):
        raise OptionError(f"TV-L1 initial flow must be float32 {[*first.shape, 2]}.")
    if not (np.abs(initial) <= _FARTHEST).all():
        raise OptionError(f"TV-L1 initial flow has values that are not finite or beyond {_FARTHEST:.0e} pixels.")
