"""What all classes share: the outcome of a case, the table of a class, outcomes that an interruption does not lose.

A class is a module with ``COUNT`` (cases of a full run), ``ABOUT`` (one sentence) and

    run(count: int, seed: int, seconds: float, folder: Path) -> Table

A case is a pure function of ``(seed, number)``: it draws everything from ``generator(name, seed, number)``. So any case
can be repeated alone, and a run that was interrupted goes on with the numbers that are missing.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SURVIVED = "survived"
"""What is promised held: the damage was named in a sentence, or it reached nothing that is used."""
SILENT = "silent"
"""Something other than what was written was served, and nothing said so. The worst that can happen."""
FAILED = "failed"
"""A traceback, a hang, a crash, too much memory, something lost: bad, but it was seen."""
SKIPPED = "skipped"
"""This machine cannot try it (no mounts, no codec); not counted as tried."""
VERDICTS = (SURVIVED, SILENT, FAILED, SKIPPED)

KEPT = 50  # outcomes that are neither survived nor skipped which a stored table lists


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    number: int
    kind: str
    """What was done to what, in few words: the rows of the detailed table (``flip in state.pt``)."""
    verdict: str
    how: str = ""
    """Of a survivor how it survived (``named``, ``unused``, ``equal`` …); of any other what went wrong."""
    seconds: float = 0.0
    peak: int = 0
    """Bytes of memory that the case took beyond what its process held before."""
    times: int = 1
    """How often it was disturbed (kills)."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.verdict!r} is no verdict")


@dataclass
class Table:
    """The outcomes of a class."""

    name: str
    seed: int
    count: int
    """Cases that were asked for."""
    outcomes: list[Outcome] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    """What else a class counts, JSON-able (frames that differ by codec …)."""

    def number_of(self, verdict: str) -> int:
        """Outcomes with a verdict."""
        return sum(outcome.verdict == verdict for outcome in self.outcomes)

    @property
    def tried(self) -> int:
        """Cases that this machine could try."""
        return len(self.outcomes) - self.number_of(SKIPPED)

    @property
    def bad(self) -> list[Outcome]:
        """Outcomes that break a promise."""
        return [outcome for outcome in self.outcomes if outcome.verdict in (SILENT, FAILED)]

    @property
    def slowest(self) -> float:
        """Seconds of the slowest case."""
        return max((outcome.seconds for outcome in self.outcomes), default=0.0)

    @property
    def peak(self) -> int:
        """Bytes of the case that took the most memory."""
        return max((outcome.peak for outcome in self.outcomes), default=0)

    def kinds(self) -> dict[str, dict[str, int]]:
        """Kind of case → verdict, with how it survived → count."""
        found: dict[str, Counter[str]] = {}
        for outcome in sorted(self.outcomes, key=lambda one: (one.kind, one.number)):
            label = f"{outcome.verdict}: {outcome.how}" if outcome.verdict == SURVIVED and outcome.how else None
            found.setdefault(outcome.kind, Counter())[label or outcome.verdict] += 1
        return {kind: dict(sorted(counts.items())) for kind, counts in found.items()}

    def to_json(self) -> dict[str, Any]:
        """What is stored of it: counts, and the cases that broke a promise."""
        times = [outcome.seconds for outcome in self.outcomes] or [0.0]
        return {
            "seed": self.seed,
            "count": self.count,
            "tried": self.tried,
            **{verdict: self.number_of(verdict) for verdict in VERDICTS},
            "median_s": round(statistics.median(times), 3),
            "slowest_s": round(self.slowest, 3),
            "peak_bytes": self.peak,
            "kinds": self.kinds(),
            "notes": self.notes,
            "bad": [asdict(outcome) for outcome in self.bad[:KEPT]],
        }


HEAD = f"{'class':12} {'tried':>7} {'survived':>9} {'silent':>7} {'failed':>7} {'slowest':>9} {'peak':>9}"


def line(name: str, content: dict[str, Any]) -> str:
    """One class as a line under ``HEAD``, from ``Table.to_json``."""
    cells = f"{content['tried']:7,} {content['survived']:9,} {content['silent']:7,} {content['failed']:7,}"
    return f"{name:12} {cells} {content['slowest_s']:7.1f} s {content['peak_bytes'] / 1e6:6,.0f} MB"


def generator(name: str, seed: int, number: int) -> random.Random:
    """All that is random in a case."""
    return random.Random(f"{name}/{seed}/{number}")


class Progress:
    """Outcomes of a class in ``<folder>/outcomes.jsonl``, one a line, each flushed as it comes."""

    def __init__(self, name: str, count: int, seed: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.table = Table(name, seed, count)
        self._path = folder / "outcomes.jsonl"
        self._shown = time.monotonic()
        done: dict[int, Outcome] = {}
        if self._path.exists():
            for text in self._path.read_text().splitlines():
                try:
                    of_seed, outcome = json.loads(text)
                except ValueError:  # the last line of a call that was killed
                    continue
                if of_seed == seed and outcome["number"] < count:
                    done[outcome["number"]] = Outcome(**outcome)
        self.table.outcomes = [done[number] for number in sorted(done)]

    def missing(self) -> list[int]:
        """The cases still to try."""
        done = {outcome.number for outcome in self.table.outcomes}
        return [number for number in range(self.table.count) if number not in done]

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome; a broken promise is printed at once, the line of the class every ten seconds."""
        self.table.outcomes.append(outcome)
        with self._path.open("a") as file:
            file.write(json.dumps([self.table.seed, asdict(outcome)]) + "\n")
        if outcome.verdict in (SILENT, FAILED):
            print(f"  case {outcome.number}: {outcome.verdict}: {outcome.kind}: {outcome.how[:400]}", flush=True)
        if time.monotonic() - self._shown > 10:
            self._shown = time.monotonic()
            print(line(self.table.name, self.table.to_json()), flush=True)

    def until(self, seconds: float) -> Iterator[int]:
        """The cases still to try, one after the other, until the time is over."""
        end = time.monotonic() + seconds
        for number in self.missing():
            if time.monotonic() > end:
                print(f"  stopped after {seconds:g} s; the same call goes on", flush=True)
                return
            yield number


def timed(number: int, kind: str, case: Callable[[], tuple[str, str]]) -> Outcome:
    """Try a case that returns verdict and how, in this process."""
    began = time.perf_counter()
    verdict, how = case()
    return Outcome(number, kind, verdict, how, time.perf_counter() - began)
