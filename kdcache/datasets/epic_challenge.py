"""The action anticipation challenges of EPIC-KITCHENS: which segments they ask for, the lists behind their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kdcache.datasets.epic import read_official
from kdcache.datasets.lists import read_frame, whole_numbers
from kdcache.errors import OptionError, unknown
from kdcache.metrics.epic import EpicScores, EpicTruth, action_ids, measure_epic55, measure_epic100

Edition = Literal["epic55", "epic100"]


@dataclass(frozen=True)
class Challenge:
    """One edition, with the folder of its annotations."""

    edition: Edition
    folder: Path
    version: str
    """Of the file format."""
    verbs: int
    nouns: int
    tests: Mapping[str, str]
    """Name of each file in the archive that the server takes → the CSV of its segments."""
    labelled: str
    """The CSV of labelled segments to measure on: the validation set, of EPIC-55 all training actions."""

    def segments(self, csv: str) -> pd.DataFrame:
        """Of one CSV, by segment (index ``uid``, text): ``participant_id``, ``start_s``, ``verb`` and ``noun``.

        Test segments have no verb and noun.

        Raises:
            OptionError: the folder lacks it.
            ManifestError: it is of another edition, or damaged.
        """
        path, classes = self._file(csv), ("verb_class", "noun_class") if csv == self.labelled else ()
        table = read_official(path, self.edition, labelled=bool(classes))
        for column in classes:
            table[column] = whole_numbers(path, table, column)
        names = {"narration_id": "uid", "verb_class": "verb", "noun_class": "noun"}
        kept = [c for c in ("uid", "narration_id", "participant_id", "start_s", *classes) if c in table]
        return table[kept].rename(columns=names).set_index("uid")

    @property
    def lists(self) -> dict[str, str]:
        """Every file that has an official list of segments: those of the tests, and of EPIC-100 ``validation.json``."""
        return dict(self.tests) | ({"validation.json": self.labelled} if self.edition == "epic100" else {})

    def measure(self, scores: EpicScores, segments: pd.DataFrame) -> dict[str, float]:
        """The official numbers in per cent, see ``kdcache.metrics.epic``; ``segments`` are labelled, one a row.

        Raises:
            OptionError: the folder lacks a list of classes or participants.
            ManifestError: one of them is damaged.
        """
        truth = EpicTruth(segments["verb"].to_numpy(), segments["noun"].to_numpy())
        if self.edition == "epic55":
            verbs, nouns = (self._numbers("EPIC_many_shot_actions.csv", f"{part}_class") for part in ("verb", "noun"))
            many_shot = {
                "verb": set(self._numbers("EPIC_many_shot_verbs.csv", "verb_class")),
                "noun": set(self._numbers("EPIC_many_shot_nouns.csv", "noun_class")),
                "action": set(action_ids(np.array(verbs, np.int64), np.array(nouns, np.int64)).tolist()),
            }
            return measure_epic55(scores, truth, many_shot)
        unseen = self._file("EPIC_100_unseen_participant_ids_validation.csv")
        people = read_frame(unseen, ["participant_id"], may_be_empty=True)["participant_id"]
        tails = (self._numbers(f"EPIC_100_tail_{part}s.csv", part) for part in ("verb", "noun"))
        return measure_epic100(scores, truth, segments["participant_id"].isin(people).to_numpy(), *tails)

    def _numbers(self, csv: str, column: str) -> list[int]:
        path = self._file(csv)
        return whole_numbers(path, read_frame(path, [column], may_be_empty=True), column)

    def _file(self, csv: str) -> Path:
        path = self.folder / csv
        if not path.exists():
            raise OptionError(
                f"{self.folder} has no {csv}: put it there, from the official annotations of {self.edition}."
            )
        return path


def open_challenge(folder: Path, edition: str | None = None) -> Challenge:
    """The challenge whose official CSVs lie in a folder.

    Args:
        folder: the annotations.
        edition: ``epic55`` or ``epic100``; None: the one whose files are there.

    Raises:
        OptionError: an unknown edition, or a folder with the files of none or of both.
    """
    known = {
        "epic55": Challenge(
            edition="epic55",
            folder=folder,
            version="0.1",
            verbs=125,
            nouns=352,
            tests={"seen.json": "EPIC_test_s1_timestamps.csv", "unseen.json": "EPIC_test_s2_timestamps.csv"},
            labelled="EPIC_train_action_labels.csv",
        ),
        "epic100": Challenge(
            edition="epic100",
            folder=folder,
            version="0.2",
            verbs=97,
            nouns=300,
            tests={"test.json": "EPIC_100_test_timestamps.csv"},
            labelled="EPIC_100_validation.csv",
        ),
    }
    if edition is not None:
        if edition not in known:
            raise unknown("challenge", edition, list(known))
        return known[edition]
    there = [c for c in known.values() if any((folder / f).exists() for f in (*c.tests.values(), c.labelled))]
    if len(there) != 1:
        has = "the official annotations of both editions" if there else "no official annotations of EPIC-KITCHENS"
        advice = "say which with dataset epic55 or epic100" if there else "name the folder of their CSV files"
        raise OptionError(f"{folder} has {has}: {advice}.")
    return there[0]
