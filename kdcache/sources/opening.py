"""Opening a source by what lies at its path, and checking one from end to end."""

from __future__ import annotations

import os

from kdcache.errors import SourceError, unknown
from kdcache.log import logger
from kdcache.recipe import SAME_PIXELS
from kdcache.roots import is_url
from kdcache.sources.base import Source, SourceInfo, check_rate
from kdcache.stopwatch import OPENING, part

DECODERS = (*SAME_PIXELS, "torchcodec")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def check_decoder(decoder: str) -> None:
    """``OptionError`` for an unknown decoder, or torchcodec where it cannot be loaded."""
    if decoder not in DECODERS:
        raise unknown("decoder", decoder, DECODERS)
    if decoder == "torchcodec":
        from kdcache.sources._torchcodec import require_torchcodec

        require_torchcodec()


@part(OPENING)
def open_source(
    path: str | os.PathLike[str], decoder: str = "auto", fps: float | None = None, device: str = "cpu"
) -> Source:
    """Open a video, a folder of images or a tar of images.

    Args:
        path: the file or folder.
        decoder: for videos, ``auto`` (PyAV, the faster), ``decord`` (files that it reads to the same pixels),
            ``pyav``, or ``torchcodec`` (nearly the same pixels, on a GPU; files that it does not read go to PyAV).
        fps: frame rate of a folder or tar, whose images carry no clock. A video's own clock is used whatever is given.
        device: where torchcodec decodes, such as ``cuda:0``; others take no notice.

    Raises:
        SourceError: missing, unreadable, empty, damaged, without video, or of a kind that cannot be read right.
        OptionError: an unknown decoder, or torchcodec where it cannot be loaded.
    """
    check_decoder(decoder)
    if is_url(os.fspath(path)):
        raise SourceError(f"{path}: an address, and only files are opened; fetch it first (kdcache.sources.at_hand).")
    name = os.path.abspath(path)  # also keeps FFmpeg from taking "name:rest" for a protocol
    if os.path.isdir(name):
        from kdcache.sources.frames import open_folder

        return open_folder(name, fps)
    if not os.path.exists(name):
        raise SourceError(f"{name}: no such file; check the path, or put it there.")
    if not os.access(name, os.R_OK):
        raise SourceError(f"{name}: may not be read by this user; change its permissions.")
    if not os.path.isfile(name):
        raise SourceError(f"{name}: neither a file nor a folder; give a video or a folder of frames.")
    if name.lower().endswith(_TARS):
        from kdcache.sources.frames import open_tar

        return open_tar(name, fps)
    if fps is not None:
        check_rate(name, fps)
    from kdcache.sources.video import VideoSource

    source = VideoSource(name, decoder, device)
    its = source.info
    logger.debug("%s: %s, %d×%d, %.3f fps, read by %s", name, its.codec, its.width, its.height, its.fps, its.backend)
    return source


def check(path: str | os.PathLike[str], decoder: str = "auto", fps: float | None = None) -> SourceInfo:
    """Decode everything once, as extraction would.

    Images of a folder or tar need no rate for this.

    Returns:
        The properties of a source in which every frame was decoded.

    Raises:
        SourceError: what is damaged, and where.
    """
    with open_source(path, decoder, fps if fps is not None else _any_rate(path)) as source:
        for _ in source.read(range(len(source.times))):
            pass
        return source.info


def _any_rate(path: str | os.PathLike[str]) -> float | None:
    name = os.fspath(path)
    return 1.0 if os.path.isdir(name) or name.lower().endswith(_TARS) else None
