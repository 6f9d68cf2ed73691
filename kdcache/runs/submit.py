"""``submit``: what finished runs anticipate, as a file for the EPIC-KITCHENS challenges and as the official numbers.

Runs on actions (target ``label``) give verbs and nouns as sums over the actions that have them, as RULSTM does; runs on
verbs and on nouns give actions as products of the two, as the challenges' baselines do. Where there are all three, each
says its own. Runs of one target are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdcache.datasets.epic_challenge import Challenge, open_challenge
from kdcache.errors import OptionError
from kdcache.runs.challenge_file import HIGHEST, LEVELS, Problems, read_file, scores_of, write_file
from kdcache.runs.run import Run
from kdcache.runs.segment_scores import SegmentAnswers

StrPath = str | Path


@dataclass(frozen=True)
class Submission:
    """What was written and measured."""

    edition: str
    path: Path | None = None
    segments: Mapping[str, int] = field(default_factory=dict)
    """Of each file in it."""
    zeros: Mapping[str, int] = field(default_factory=dict)
    """Segments of each file without an answer, whose scores are all 0."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The official ones in per cent; empty where there are no held-out labels."""
    measured_on: int = 0
    """Labelled segments that they are taken of."""
    lacking: int = 0
    """Segments of the official validation set that are not among these."""


def submit(
    runs: Run | StrPath | Sequence[Run | StrPath],
    out: StrPath | None = None,
    *,
    annotations: StrPath,
    dataset: str | None = None,
    split: Literal["test", "validation"] = "test",
    tau_s: float = 1.0,
    sls: str | None = None,
    which: str = "last",
    shards: StrPath | None = None,
    fill: bool = False,
    lag_s: float | None = None,
) -> Submission:
    """Write a checked file for the action anticipation challenge, and measure the runs on held-out labels as it does.

    Args:
        runs: finished runs or their folders: of actions, or of verbs and of nouns.
        out: ``….zip`` as the server takes it, or, of EPIC-100, the ``….json`` in it; None writes nothing.
        annotations: folder of the official CSV files.
        dataset: ``epic55`` or ``epic100``; None: the one whose files are there.
        split: whose segments are written; ``validation`` is the set of EPIC-100 that its evaluation script takes.
        tau_s: anticipation time in seconds; the challenges ask for 1.
        sls: supervision levels as ``PT-TL-TD``, such as ``1-3-3``; EPIC-100 wants them declared.
        which: ``last`` or ``best`` weights.
        shards: a cache with the segments, where it is not the runs' own.
        fill: segments that the cache does not have get scores of 0, as RULSTM writes them, instead of an error; in the
            numbers of EPIC-100 such segments count as misses.
        lag_s: of runs that answer at several times before the action: seconds from the last step of the features to the
            end of each clip, where their import does not say it (``import lmdb --step`` does).

    Raises:
        OptionError: runs that do not go together or do not answer ``tau_s`` ahead, clips that show what lies later,
            classes of another data set, or segments without an answer.
    """
    challenge = open_challenge(Path(annotations), dataset)
    opened = _opened(runs, shards)
    if split not in ("test", "validation"):
        raise OptionError(f"split={split}: choose test or validation.")
    if split == "validation" and challenge.edition == "epic55":
        raise OptionError("split=validation: EPIC-KITCHENS-55 has no official validation set; leave out or name none.")
    if lag_s is not None and not (math.isfinite(lag_s) and lag_s >= 0):
        raise OptionError(f"lag_s={lag_s}: give seconds, 0 or more.")
    levels = _levels(sls)
    if out is not None and challenge.edition == "epic100" and levels is None:
        raise OptionError(
            "EPIC-KITCHENS-100 wants the levels of supervision declared: give sls=PT-TL-TD, such as 1-3-3."
        )
    said = SegmentAnswers(opened, challenge, tau_s, which, lag_s)
    made: dict[str, Any] = {}
    if out is not None:
        csvs = {"validation.json": challenge.labelled} if split == "validation" else challenge.tests
        files, zeros = {}, {}
        for name, csv in csvs.items():
            files[name], zeros[name] = said.of(name, challenge.segments(csv), fill)
        write_file(Path(out), challenge, files, levels)
        made = {"path": Path(out), "segments": {name: len(its.uids) for name, its in files.items()}, "zeros": zeros}
    return Submission(challenge.edition, **made, **_numbers(said, challenge, fill))


def check(file: StrPath, annotations: StrPath, dataset: str | None = None) -> tuple[list[str], Submission]:
    """What the server would refuse of a submission, one sentence for each kind of problem; none if it is right.

    Args:
        file: a zip, or one of the JSON files in it; of EPIC-100 also one of the validation set, which is then measured.
        annotations: folder of the official CSV files.
        dataset: ``epic55`` or ``epic100``; None: the one whose files are there.

    Returns:
        The sentences, and the number of segments of each file.

    Raises:
        SourceError: no zip or JSON.
        OptionError: no annotations.
    """
    challenge, path = open_challenge(Path(annotations), dataset), Path(file)
    parsed, sentences = read_file(path, challenge)
    counts, numbers = {}, dict[str, Any]()
    for name, submission in parsed.items():
        problems = Problems(challenge, name)
        problems.header(submission)
        results = submission.get("results")
        if not isinstance(results, dict):
            problems.add("results is missing" if results is None else "results is no table of segments")
            sentences += problems.sentences()
            continue
        csv = challenge.lists.get(name) or _closest(challenge, results)
        wanted = challenge.segments(csv)
        problems.segments(results, list(wanted.index))
        for uid, entry in results.items():
            problems.segment(uid, entry)
        found = problems.sentences()
        sentences, counts[name] = sentences + found, len(results)
        if not found and csv == challenge.labelled:
            measured = challenge.measure(scores_of(results, list(wanted.index)), wanted)
            numbers = {"numbers": measured, "measured_on": len(wanted)}
    return sentences, Submission(challenge.edition, path, counts, **numbers)


def _closest(challenge: Challenge, results: Mapping[str, Any]) -> str:
    """The CSV with most of a file's segments."""
    shared = {csv: len(results.keys() & set(challenge.segments(csv).index)) for csv in challenge.lists.values()}
    return max(shared, key=lambda csv: shared[csv])


def _opened(runs: Run | StrPath | Sequence[Run | StrPath], shards: StrPath | None) -> list[Run]:
    each = [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    if not each:
        raise OptionError("Name at least one run to submit.")
    opened = [run if isinstance(run, Run) else Run(run) for run in each]
    for run in opened:
        if run.settings.shards is None:
            raise OptionError(
                f"{run.path} was not trained on a cache: the segments of the challenge are looked up in one."
            )
    targets = {run.target for run in opened}
    if "label" not in targets and targets != {"verb", "noun"}:
        raise OptionError(
            f"The runs predict {' and '.join(sorted(targets))}: give one of actions (target=label), or one of verbs "
            "and one of nouns."
        )
    return [run.on_cache(shards) for run in opened] if shards is not None else opened


def _levels(sls: str | None) -> list[int] | None:
    """``1-3-3`` → [1, 3, 3]."""
    if sls is None:
        return None
    parts = sls.split("-")
    if len(parts) != len(LEVELS) or not all(p.isdecimal() and int(p) <= HIGHEST for p in parts):
        raise OptionError(
            f"sls={sls}: give the levels of pre-training, labels and training data as PT-TL-TD, each of "
            f"them from 0 to {HIGHEST}."
        )
    return [int(p) for p in parts]


def _numbers(said: SegmentAnswers, challenge: Challenge, fill: bool) -> dict[str, Any]:
    """The fields of ``Submission`` that say what was measured."""
    if not (challenge.folder / challenge.labelled).exists():
        return {}
    official = challenge.segments(challenge.labelled)
    here = said.there(official)
    here = here[here.index.isin(said.held_out())]
    if not len(here):
        return {}
    lacking = len(official) - len(here) if challenge.edition == "epic100" else 0
    said.check_classes(here)
    if fill and lacking:
        its, _ = said.of("validation.json", official, fill, among=here.index)
        return {"numbers": challenge.measure(its.scores, official), "measured_on": len(official)}
    return {"numbers": challenge.measure(said.scores(here), here), "measured_on": len(here), "lacking": lacking}
