"""Files for the servers of the EPIC-KITCHENS anticipation challenges: written segment by segment, read, checked.

A file is JSON: ``version``, ``challenge``, from 0.2 on ``sls_pt``, ``sls_tl``, ``sls_td`` (0 to 5, how much supervision
was used: https://github.com/epic-kitchens/SLS), and ``results``: segment → ``verb`` {class: score for every class},
``noun`` likewise, ``action`` {"verb,noun": score for exactly 100 actions}; actions may be left out of all segments. The
server takes a zip of ``test.json`` (EPIC-100), or of ``seen.json`` and ``unseen.json`` (EPIC-55). The rules are those
of ``validate_submission`` in epic-kitchens/C3-Action-Anticipation, for EPIC-55 with its version and numbers of classes;
beyond them scores must be finite and no key may occur twice.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.datasets.epic_challenge import Challenge
from kdcache.errors import KdcacheError, OptionError, SourceError
from kdcache.files import atomic, opened
from kdcache.metrics.epic import PART_OF_ACTION, EpicScores, action_ids, best_products
from kdcache.text import short

NAME = "action_anticipation"
ACTIONS = 100
"""Of each segment."""
LEVELS = ("sls_pt", "sls_tl", "sls_td")
HIGHEST = 5
LARGEST_BYTES = 512 << 20
"""Of a file, also within an archive; EPIC-100's test set takes 0.2 GB."""

_ACTION = re.compile(r"(0|[1-9]\d{0,5}),(0|[1-9]\d{0,5})")


@dataclass(frozen=True)
class SegmentScores:
    """What is said of the segments of one file, with ``ACTIONS`` actions each."""

    uids: Sequence[str]
    scores: EpicScores


@dataclass
class Problems:
    """What is wrong with a file: one sentence for each kind of problem, with the first segment that has it."""

    challenge: Challenge
    file: str
    with_actions: bool | None = None
    """Whether segments have action scores; None before the first."""
    _found: dict[str, tuple[str, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {"verb": self.challenge.verbs, "noun": self.challenge.nouns}
        self._classes = {task: [str(c) for c in range(count)] for task, count in counts.items()}
        self._sets = {task: set(names) for task, names in self._classes.items()}

    def add(self, problem: str, uid: str = "", kind: str = "") -> None:
        """Note one; ``problem`` ends a sentence that begins with the file, or with the segment ``uid``.

        Of those of one ``kind`` (none: of the same words) the first is told and the others are counted."""
        self._found.setdefault(kind or problem, (problem, []))[1].append(uid)

    def sentences(self) -> list[str]:
        """All of them."""
        made = []
        for problem, uids in self._found.values():
            more = f" and {len(uids) - 1} more" if len(uids) > 1 else ""
            made.append(
                f"{self.file}: segment {uids[0][:100]}{more}: {problem}." if uids[0] else f"{self.file}: {problem}."
            )
        return made

    def header(self, submission: Mapping[str, Any]) -> None:
        """Check all but the results."""
        for name, wanted in (("version", self.challenge.version), ("challenge", NAME)):
            if name not in submission:
                self.add(f"{name} is missing; it must be {wanted!r}")
            elif submission[name] != wanted:
                self.add(f"{name} is {short(submission[name])}; it must be {wanted!r}")
        for name in LEVELS if self.challenge.version != "0.1" else ():
            level = submission.get(name)
            if name not in submission:
                self.add(f"{name} is missing; declare a supervision level from 0 to {HIGHEST}")
            elif type(level) is not int or not 0 <= level <= HIGHEST:
                self.add(f"{name} is {short(level)}; it must be a whole number from 0 to {HIGHEST}")

    def segments(self, found: Collection[str], wanted: Collection[str]) -> None:
        """Check that all segments are there and no others."""
        there, expected = set(found), set(wanted)
        lacking = [uid for uid in wanted if uid not in there]
        others = [uid for uid in found if uid not in expected]
        if lacking:
            self.add(f"{len(lacking)} of {len(wanted)} segments are missing, the first is {lacking[0]}")
        if others:
            self.add(f"{len(others)} segments are not in the official list, the first is {others[0][:100]}")

    def segment(self, uid: str, entry: Any) -> None:
        """Check the scores of one segment."""
        if not isinstance(entry, dict):
            self.add("is no table of verb, noun and action scores", uid)
            return
        for task in ("verb", "noun"):
            self._classed(uid, task, entry.get(task))
        actions = entry.get("action")
        if self.with_actions is None:
            self.with_actions = actions is not None
        if self.with_actions != (actions is not None):
            self.add(
                "action scores must be given for all segments or for none, and this one differs from the first", uid
            )
        if actions is not None:
            self._actions(uid, actions)

    def _classed(self, uid: str, task: str, scores: Any) -> None:
        if not isinstance(scores, dict):
            self.add(f"has no {task} scores", uid)
            return
        last = self._classes[task][-1]
        if scores.keys() != self._sets[task]:
            if lacking := [c for c in self._classes[task] if c not in scores]:
                self.add(
                    f"lacks scores of {task} classes, for instance {lacking[0]} (of 0 to {last})", uid, f"{task} lacks"
                )
            if others := sorted(scores.keys() - self._sets[task]):
                self.add(f"{short(others[0])} is no {task} class (0 to {last})", uid, f"{task} others")
        self._finite(uid, task, scores)

    def _actions(self, uid: str, scores: Any) -> None:
        if not isinstance(scores, dict):
            self.add("action scores are no table", uid)
            return
        if len(scores) != ACTIONS:
            self.add(f"has scores of {len(scores)} actions; there must be {ACTIONS}", uid, "number")
        for key in scores:
            match = _ACTION.fullmatch(key)
            if not match:
                self.add(f"{short(key)} is no action; write verb,noun such as 3,25", uid, "key")
                break
            if int(match[1]) >= self.challenge.verbs or int(match[2]) >= self.challenge.nouns:
                self.add(f"action {key} has a verb or noun that does not exist", uid, "class")
                break
        self._finite(uid, "action", scores)

    def _finite(self, uid: str, task: str, scores: Mapping[str, Any]) -> None:
        for key, score in scores.items():
            if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
                self.add(f"the score of {task} {key[:100]} is {short(score)}; it must be a finite number", uid, task)
                return


def write_file(path: Path, challenge: Challenge, files: Mapping[str, SegmentScores], sls: Sequence[int] | None) -> None:
    """Write a submission, a zip or, of one file, plain JSON; every segment is checked as it is written.

    Args:
        path: ends in ``.zip`` or ``.json``; appears when it is complete.
        challenge: whose format it is.
        files: name of each file in it and its scores.
        sls: pre-training, training labels, training data; None writes none, which version 0.2 does not allow.

    Raises:
        OptionError: another ending, several files as JSON, or content that the server would refuse.
    """
    if path.suffix not in (".zip", ".json"):
        raise OptionError(f"{path}: the name of a submission ends in .zip or, of a single file, in .json.")
    if path.suffix == ".json" and len(files) > 1:
        raise OptionError(f"{path}: {challenge.edition} takes {' and '.join(files)} together; write a .zip.")
    head = {"version": challenge.version, "challenge": NAME} | dict(zip(LEVELS, sls or (), strict=False))
    with atomic(path) as temporary:
        if path.suffix == ".json":
            ((name, its),) = files.items()
            with temporary.open("w", encoding="ascii") as plain:
                plain.writelines(_text(challenge, name, head, its))
            return
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, its in files.items():
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:  # the same bytes at any time
                    for part in _text(challenge, name, head, its):
                        member.write(part.encode("ascii"))


def _text(challenge: Challenge, name: str, head: Mapping[str, Any], its: SegmentScores) -> Iterator[str]:
    """The JSON of one file, a segment a line; ``OptionError`` where the server would refuse it."""
    problems = Problems(challenge, name)
    problems.header(head)
    yield json.dumps(head)[:-1] + ', "results": {'
    s = its.scores
    for i, uid in enumerate(its.uids):
        keys = [f"{a // PART_OF_ACTION},{a % PART_OF_ACTION}" for a in s.action_id[i].tolist()]
        entry = {
            "verb": _rounded(map(str, range(s.verb.shape[1])), s.verb[i].tolist()),
            "noun": _rounded(map(str, range(s.noun.shape[1])), s.noun[i].tolist()),
            "action": _rounded(keys, s.action[i].tolist()),
        }
        problems.segment(uid, entry)
        yield f"{',' if i else ''}\n{json.dumps(uid)}: {json.dumps(entry)}"
    yield "\n}}\n"
    if found := problems.sentences():
        raise OptionError(found[0])


def _rounded(keys: Iterable[str], scores: Sequence[float]) -> dict[str, float]:
    """Scores by key; nine digits tell any two float32 apart, so that ranks stay what they are."""
    return {key: float(f"{score:.9g}") for key, score in zip(keys, scores, strict=True)}


def read_file(path: Path, challenge: Challenge) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The files of a submission, parsed, and what is wrong with its archive; of plain JSON the file's own name.

    Raises:
        SourceError: it is neither a zip nor JSON.
    """
    if path.suffix == ".json":
        with opened(path) as file:
            _check_size(os.fstat(file.fileno()).st_size, str(path))
            return {path.name: _parsed(file.read(), str(path))}, []
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist()]
            problems = [f"{path}: {name} is missing." for name in challenge.tests if name not in names]
            if others := [name for name in names if name not in challenge.tests]:
                more = f" and {len(others) - 1} more do" if len(others) > 1 else " does"
                belongs = " and ".join(challenge.tests)
                problems.append(
                    f"{path}: {short(others[0])}{more} not belong there; the archive holds {belongs} alone."
                )
            problems += [f"{path}: {name} is there twice." for name in challenge.tests if names.count(name) > 1]
            parsed = {}
            for name in (n for n in challenge.tests if n in names):
                _check_size(archive.getinfo(name).file_size, f"{path}: {name}")
                parsed[name] = _parsed(archive.read(name), f"{path}: {name}")
            return parsed, problems
    except KdcacheError:
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError) as error:
        # of no zip, of damaged, encrypted or oddly packed members
        raise SourceError(f"{path}: cannot be read as a zip ({error}); a plain file is named .json.") from error


def _check_size(size: int, where: str) -> None:
    if size > LARGEST_BYTES:
        raise SourceError(f"{where} has more than {LARGEST_BYTES >> 20} MiB; no submission is so large.")


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    twice: list[str] = []

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice.append(Counter(key for key, _ in pairs).most_common(1)[0][0][:100])
        return made

    try:
        found = json.loads(content, object_pairs_hook=table)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: cannot be read as JSON ({error}).") from error
    if twice:
        raise SourceError(f"{where}: key {twice[0]!r} occurs twice in one table, so one of its values would be lost.")
    if not isinstance(found, dict):
        raise SourceError(f"{where}: is no JSON object with version, challenge and results.")
    return found


def scores_of(results: Mapping[str, Any], uids: Sequence[str]) -> EpicScores:
    """The scores of some segments of a checked file.

    Where it has no action scores they are the 100 best products of the softmax of verb and noun scores, as in the
    official code.
    """
    parts = {}
    for task in ("verb", "noun"):
        classes = [str(c) for c in range(len(results[uids[0]][task]))]
        parts[task] = np.array([[results[uid][task][c] for c in classes] for uid in uids], np.float64)
    if "action" not in results[uids[0]]:
        action, ids = best_products(_softmax(parts["verb"]), _softmax(parts["noun"]), ACTIONS)
        return EpicScores(parts["verb"], parts["noun"], action, ids)
    action = np.array([list(results[uid]["action"].values()) for uid in uids], np.float64)
    pairs = np.array([[key.split(",") for key in results[uid]["action"]] for uid in uids], np.int64)
    return EpicScores(parts["verb"], parts["noun"], action, action_ids(pairs[..., 0], pairs[..., 1]))


def _softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
