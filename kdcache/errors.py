"""Every error a user can cause or meet, each one sentence: the offending input, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_PROBLEMS = 50  # of a bad manifest; a wrong export has as many as it has rows
LONGEST_PROBLEM = 500  # characters of one of them; a cell that is quoted in it may be of any length


class KdcacheError(Exception):
    """Base of all errors that the command line prints as one sentence, without a traceback."""


class OptionError(KdcacheError, ValueError):
    """An option, name or setting that kdcache does not know or cannot honour."""


class ReferenceRowError(OptionError):
    """The row of a comparison failed against which the others are tested."""


class ManifestError(KdcacheError, ValueError):
    """A manifest that breaks the contract; ``problems`` lists every bad row, each with its line number."""

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = [_cut(problem) for problem in problems]
        if len(self.problems) == 1:
            super().__init__(f"{path}: {self.problems[0]}")
            return
        more = len(self.problems) - SHOWN_PROBLEMS
        lines = "\n".join(f"  {p}" for p in self.problems[:SHOWN_PROBLEMS])
        lines += f"\n  … and {more} more" if more > 0 else ""
        super().__init__(f"{path}: {len(self.problems)} problems; fix them and try again:\n{lines}")


def _cut(problem: str) -> str:
    """What a problem begins and ends with, where it is too long to read."""
    half = LONGEST_PROBLEM // 2
    return problem if len(problem) <= LONGEST_PROBLEM else f"{problem[:half]} … {problem[-half:]}"


class SourceError(KdcacheError, OSError):
    """A video, frame folder or skeleton file that cannot be read right; names the file."""


class RemoteError(KdcacheError, OSError):
    """A file, folder or bucket at an address that cannot be had.

    Attributes:
        missing: nothing lies there.
        again: the network is at fault, and a later attempt may succeed.
    """

    def __init__(self, text: str, *, missing: bool = False, again: bool = False) -> None:
        super().__init__(text)
        self.missing, self.again = missing, again


class ClipError(KdcacheError, ValueError):
    """A clip that cannot be cut from a readable source (span outside it, no frames)."""


class StoreError(KdcacheError, OSError):
    """A shard or cache that is damaged, incomplete, unsafe to open, or that mixes recipes."""


class WriteError(KdcacheError, OSError):
    """A file that cannot be written, most often because the disk is full; what it held before is still there."""


class WeightsError(KdcacheError, ValueError):
    """A checkpoint that is missing, of another digest, or of another network's shape."""


class BackboneError(KdcacheError, RuntimeError):
    """A network that raises an exception of its own while it computes features."""


class DeviceError(KdcacheError, RuntimeError):
    """A device that was asked for and is not there, whose memory is too small, or that is broken."""


def unknown(kind: str, name: str, known: Sequence[str]) -> OptionError:
    """An ``OptionError`` for a misspelt name, offering the nearest known one."""
    import difflib

    near = difflib.get_close_matches(name[:LONGEST_PROBLEM], known, n=1)
    choices = f"choose one of: {', '.join(known)}." if known else "there is none."
    hint = f"did you mean {near[0]!r}?" if near else choices
    shown = name if len(name) <= LONGEST_PROBLEM else f"{name[:100]}…"
    return OptionError(f"Unknown {kind} {shown!r}: {hint}")


def raised(error: Exception) -> str:
    """An exception of a user's own code in a few words, with its place."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    words = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__} in {last.filename}:{last.lineno} ({words})"
