"""What runs say of the segments of an EPIC-KITCHENS challenge: clips found by segment, scores put together, leaks
refused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.datasets.epic_challenge import Challenge
from kdcache.errors import OptionError
from kdcache.methods.contract import HELD_OUT
from kdcache.metrics.epic import EpicScores, action_ids, best_actions, best_products
from kdcache.metrics.topk import marginalise
from kdcache.runs.challenge_file import ACTIONS, SegmentScores
from kdcache.runs.run import Run
from kdcache.store import Cache

SLACK_S = 1 / 30 + 1e-6
"""By which a clip may end too late: RULSTM's lists give the action's first frame at 30 a second."""
CLIPS_AT_ONCE = 2048
"""Answers at several times for thousands of classes fill gigabytes."""

Probabilities = NDArray[np.floating]


class SegmentAnswers:
    """What runs say of the segments of a challenge."""

    def __init__(
        self, runs: Sequence[Run], challenge: Challenge, tau_s: float, which: str, lag_s: float | None = None
    ) -> None:
        self.runs, self.challenge, self.tau_s, self.which, self.lag_s = runs, challenge, tau_s, which, lag_s
        self._clips = [self._known(run) for run in runs]

    def held_out(self) -> set[str]:
        """Segments that every run held out from training."""
        kept = []
        for run, clips in zip(self.runs, self._clips, strict=True):
            splits, role = run.training_data.data.splits, run.predictor(self.which).role
            rows = [r for s in HELD_OUT if s in splits for r in splits[s].rows[role].tolist() if r >= 0]
            held = {run.training_data.examples.clip_ids[row] for row in rows}
            kept.append(set(clips.index[clips["clip_id"].isin(held)]))
        return set.intersection(*kept)

    def there(self, segments: pd.DataFrame) -> pd.DataFrame:
        """Those of some segments that every run has a clip of."""
        return segments[np.logical_and.reduce([segments.index.isin(clips.index) for clips in self._clips])]

    def of(
        self, name: str, segments: pd.DataFrame, fill: bool, among: Collection[str] | None = None
    ) -> tuple[SegmentScores, int]:
        """Scores of all segments of a file, and how many of them are zeros.

        Args:
            name: of the file.
            segments: all of them.
            fill: segments without an answer get zeros.
            among: the only ones that may have an answer; None: any.

        Raises:
            OptionError: segments without an answer, unless ``fill`` and there are others.
        """
        there = self.there(segments)
        if among is not None:
            there = there[there.index.isin(among)]
        lacking = segments.index.difference(there.index, sort=False)
        if not len(there):
            raise OptionError(
                f"{self.runs[0].settings.shards} has none of the {len(segments)} segments of {name}: list them in the "
                "manifest (kdcache manifest … --set test=true) and add them to the cache, or name another with shards."
            )
        if len(lacking) and not fill:
            raise OptionError(
                f"{len(lacking)} of the {len(segments)} segments of {name} have no clip that every run can read (first "
                f"{lacking[0]}): add them to the cache, or set fill for scores of 0."
            )
        scores = self.scores(there)
        if not len(lacking):
            return SegmentScores(list(there.index), scores), 0
        at = segments.index.get_indexer(there.index)

        def spread(part: Probabilities) -> Probabilities:
            full = np.zeros((len(segments), part.shape[1]), part.dtype)
            full[at] = part
            return full

        ids = np.tile(scores.action_id[:1], (len(segments), 1))
        ids[at] = scores.action_id
        full = EpicScores(spread(scores.verb), spread(scores.noun), spread(scores.action), ids)
        return SegmentScores(list(segments.index), full), len(lacking)

    def check_classes(self, segments: pd.DataFrame) -> None:
        """``OptionError`` where a clip has another verb or noun than its segment, whose official ones these are."""
        for clips in self._clips:
            for part in (p for p in ("verb", "noun") if p in clips):
                own = clips.loc[segments.index, part]
                other = own.index[(own.notna() & (own != segments[part])).to_numpy(bool)]
                if len(other):
                    uid = other[0]
                    raise OptionError(
                        f"Segment {uid} has {part} {own[uid]} in the cache and {segments.loc[uid, part]} in "
                        f"{self.challenge.folder}: the annotations and the cache are of two data sets."
                    )

    def scores(self, segments: pd.DataFrame) -> EpicScores:
        """Of segments that every run has; ``OptionError`` where the clips of a run show too much."""
        of_target: dict[str, list[pd.DataFrame]] = {}
        for run, clips in zip(self.runs, self._clips, strict=True):
            mine = clips.loc[segments.index]
            self._check_times(run, mine, segments)
            of_target.setdefault(run.target, []).append(self._answers(run, mine["clip_id"].tolist()))
        mean = {target: _mean(target, tables) for target, tables in of_target.items()}
        parts = {"verb": self.challenge.verbs, "noun": self.challenge.nouns}
        of_part: dict[str, Probabilities] = {}
        pairs = self._pairs(mean["label"].columns) if "label" in mean else np.empty((0, 2), np.int64)
        for i, (part, count) in enumerate(parts.items()):
            numbers = mean[part].columns.to_numpy(np.int64) if part in mean else pairs[:, i]
            if len(numbers) and int(numbers.max()) >= count:
                raise OptionError(
                    f"{part} class {int(numbers.max())} is none of the {count} of {self.challenge.edition}: its "
                    "annotations and the runs' are of two data sets."
                )
            probabilities = mean[part if part in mean else "label"].to_numpy()
            of_part[part] = marginalise(probabilities, numbers, count)
        if "label" not in mean:
            return EpicScores(
                of_part["verb"], of_part["noun"], *best_products(of_part["verb"], of_part["noun"], ACTIONS)
            )
        return EpicScores(of_part["verb"], of_part["noun"], *self._best(mean["label"].to_numpy(), pairs))

    def _known(self, run: Run) -> pd.DataFrame:
        """The clips by which a run answers for segments, by segment: ``clip_id`` and their columns of the manifest."""
        clips = Cache(str(run.settings.shards)).clips
        if "uid" not in clips:
            raise OptionError(
                f"The manifest of {run.settings.shards} has no column uid, which names the segments: list the clips "
                "with kdcache manifest epic55, epic100 or rulstm."
            )
        role = run.predictor(self.which).role
        if role == "action":
            raise OptionError(f"{run.path} sees the action itself: the challenge is of runs that anticipate it.")
        mine = clips[clips["clip_id"].isin(run.training_data.examples.clip_ids) & (clips["uid"].fillna("") != "")]
        mine = mine[mine["role"].isin(["", role]) | mine["role"].isna()] if "role" in mine else mine
        if "tau" in mine:  # one cache may hold several anticipation times
            tau = pd.to_numeric(mine["tau"], errors="coerce")
            if len(mine) and not (tau.isna() | (tau == self.tau_s)).any():
                raise OptionError(
                    f"The pairs of {run.settings.shards} are {tau.iloc[0]:g} s apart, not {self.tau_s:g}."
                )
            mine = mine[tau.isna() | (tau == self.tau_s)]
        uid = mine["uid"].astype(str)
        if self.challenge.edition == "epic55":  # numbers, which RULSTM writes with leading zeros
            uid = uid.str.lstrip("0").mask(lambda text: text == "", "0")
        found = mine.assign(uid=uid)
        if found["uid"].duplicated().any():
            twice = found.loc[found["uid"].duplicated(), "uid"].iloc[0]
            raise OptionError(
                f"{run.settings.shards} has several clips of segment {twice}: name a cache with one of each by shards."
            )
        return found.set_index("uid")

    def _check_times(self, run: Run, clips: pd.DataFrame, segments: pd.DataFrame) -> None:
        """``OptionError`` where a clip ends later than an answer ``tau_s`` ahead allows."""
        axis = run.predictor(self.which).axis
        # A method that answers at several times takes the last step for the time nearest to the action.
        ahead = self.tau_s if axis is None else max(0.0, min(axis.values) - self._lag(run))
        over = clips["stop_s"].to_numpy() - (segments["start_s"].to_numpy() - ahead)
        late = ~(over <= SLACK_S)  # NaN: up to the end of the video
        if "clamped" in clips:
            late &= (clips["clamped"] != "1").to_numpy()
        if late.any():
            first = int(late.argmax())
            raise OptionError(
                f"{run.path}: clip {clips['clip_id'].iloc[first]!r} of segment {clips.index[first]} ends at "
                f"{clips['stop_s'].iloc[first]:g} s, later than {ahead:g} s before its action at "
                f"{segments['start_s'].iloc[first]:g} s, as do {int(late.sum()) - 1} others: the challenge forbids it."
            )

    def _lag(self, run: Run) -> float:
        """Seconds from the last step of a run's features to the end of each clip; ``OptionError`` where not known."""
        found: list[float] = []
        for stream, recipe in run.training_data.recipes.items():
            lag = recipe.get("imported", {}).get("sampling", {}).get("lag", self.lag_s)
            if lag is None:
                raise OptionError(
                    f"{run.path}: how long before the end of a clip the last step of {stream} lies is not known, so "
                    "its answers may have seen too much: state it with --lag (lag_s=), or import with --step and --lag."
                )
            if self.lag_s not in (None, lag):
                raise OptionError(f"--lag {self.lag_s:g}: {stream} was imported with --lag {lag:g}; leave it out.")
            found.append(lag)
        return min(found)

    def _answers(self, run: Run, clips: list[str]) -> pd.DataFrame:
        """Probabilities ``tau_s`` ahead, a row a clip and a column a class."""
        parts: list[pd.DataFrame] = []
        for i in range(0, len(clips), CLIPS_AT_ONCE):
            table = run.predict(clips[i : i + CLIPS_AT_ONCE], self.which)
            if table.index.nlevels == 2:
                at = table.index.get_level_values(1)
                axis = run.answer_axis(at.nunique(), self.which)
                if axis.name != "tau_s" or self.tau_s not in axis.values:
                    known = ", ".join(f"{value:g}" for value in axis.values)
                    raise OptionError(
                        f"{run.path} does not answer {self.tau_s:g} s ahead: its answers are at {axis.name} {known}."
                    )
                table = table.loc[at == self.tau_s]
            parts.append(table)
        return pd.concat(parts)

    def _pairs(self, labels: pd.Index[Any]) -> NDArray[np.int64]:
        """Verb and noun of each action, ``[C, 2]``."""
        both = zip(self.runs, self._clips, strict=True)
        rows = pd.concat([c.reindex(columns=["label", "verb", "noun"]) for run, c in both if run.target == "label"])
        known = rows.dropna().drop_duplicates().astype(np.int64).set_index("label")
        wrong = known.index[known.index.duplicated()].union(labels.difference(known.index))
        if len(wrong):
            raise OptionError(
                f"Label {int(wrong[0])} does not have one verb and one noun in the manifest, so it is no action: list "
                "the clips with target=action, or give runs of verbs and of nouns."
            )
        return known.loc[labels].to_numpy(np.int64)

    def _best(self, probabilities: Probabilities, pairs: NDArray[np.int64]) -> tuple[Probabilities, NDArray[np.int64]]:
        """The best actions; where a run knows fewer than a file holds, others follow with scores of 0."""
        ids = action_ids(pairs[:, 0], pairs[:, 1])
        if len(ids) < ACTIONS:
            every = action_ids(*np.divmod(np.arange(ACTIONS + len(ids)), self.challenge.nouns))
            more = np.setdiff1d(every, ids)[: ACTIONS - len(ids)]
            ids = np.concatenate([ids, more])
            probabilities = np.pad(probabilities, ((0, 0), (0, len(more))))
        order = np.argsort(ids)
        return best_actions(probabilities[:, order], ids[order], ACTIONS)


def _mean(target: str, tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Of runs of one target."""
    for table in tables[1:]:
        if list(table.columns) != list(tables[0].columns):
            raise OptionError(f"Two runs predict other classes of {target}: submit runs on the same classes.")
    return pd.DataFrame(np.mean([t.to_numpy() for t in tables], axis=0), columns=tables[0].columns)
