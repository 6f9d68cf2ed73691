"""Cross-fitting: fits that each leave a part of the labelled training clips out, and one on all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.backbones import canonical, crossfit
from kdcache.backbones.metadata import FitMetadata, file_name, read_metadata
from kdcache.backbones.weights import of_folder, weights_digest
from kdcache.data.clips import clips
from kdcache.data.ondemand.open import target_of
from kdcache.data.parts import draw_parts
from kdcache.data.splits import TARGETS, split_by
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.manifest import manifest_text
from kdcache.methods.labels import keep_fraction, labelled_sets
from kdcache.methods.recognition import origin, starts_from_random
from kdcache.roots import Root
from kdcache.runs.config import renamed
from kdcache.runs.folder import CONFIG
from kdcache.runs.one_fit import MANIFEST, METHOD, Fit, fit_once
from kdcache.runs.prepare import manifest_rows
from kdcache.splits import SPLIT, TRAIN

_DRAWN = ("label_fraction", "label_seed", "split_column")
"""Options that the rows of the parts' fits already follow."""


@dataclass(frozen=True)
class CrossFit(Fit):
    """Finished fits of which each but the first has left a part of the labelled training clips out.

    As a ``Fit`` it is the one on all clips, but ``weights`` and ``path`` are the folder of them all, which
    ``extract --weights`` takes.
    """

    parts: tuple[Fit, ...] = ()
    """The fit without each part."""

    @classmethod
    def open(cls, folder: str | Path) -> CrossFit:
        """The fits in a folder; ``OptionError`` or ``WeightsError`` where they have not all finished."""
        cross = of_folder(Path(folder)).cross_fit
        assert cross is not None
        full = Fit.open(Path(folder) / crossfit.ALL)
        parts = tuple(Fit.open(file.parent) for file in cross.files)
        return cls(full.run, Path(folder), full.failures, parts)

    @property
    def path(self) -> Path:
        """The folder of all fits."""
        return self.weights

    @property
    def facts(self) -> FitMetadata:
        """What the weights file of all clips says of itself."""
        facts = read_metadata(self.run.path / file_name(canonical(self.run.options.backbone)))
        assert facts is not None
        return facts

    def to_json(self) -> dict[str, Any]:
        """Folder, result of the fit on all clips, failures, and the parts' fits, as plain data."""
        return {**super().to_json(), "parts": [part.to_json() for part in self.parts]}

    def __str__(self) -> str:
        return f"{super().__str__()} Cross-fitted: {len(self.parts)} more fits, each without a part of the clips."


def cross_fit_into(
    folder: Path,
    parts: int,
    backbone: str,
    manifest: pd.DataFrame | str | Path,
    root: Root,
    seed: int,
    device: str,
    precision: str,
    options: Mapping[str, Any],
    workers: int | str = "auto",
) -> CrossFit:
    """Fit on all clips and without each part, or go on there; see ``kdcache.runs.fit.fit``.

    Raises:
        OptionError: fewer than two parts, fewer clips than parts, a folder with another fit, weights to start from
            that have seen the clips, or a class that only one part has.
    """
    if parts < 2:
        raise OptionError(f"cross_fit={parts}: cut the clips into 2 parts or more, or leave it out for one fit.")
    if (folder / CONFIG).exists():
        raise OptionError(f"{folder} holds a fit that is not cross-fitted: choose another folder for out.")
    options = renamed(METHOD, dict(options))
    full = fit_once(backbone, manifest, root, folder / crossfit.ALL, seed, device, precision, dict(options), workers)
    rows, part_of = _parts_of(full, parts)
    kept = {name: value for name, value in options.items() if name not in _DRAWN}
    fits = []
    for number in range(parts):
        logger.info("cross-fit: part %d of %d is left out", number + 1, parts)
        its = rows.copy()
        out = rows["clip_id"].map(part_of) == number
        for target in (t for t in TARGETS if t in its):
            its[target] = its[target].mask(out)
        where = folder / crossfit.part_folder(number)
        _refuse_other_parts(where, its, full.run.settings.roots.allow_absolute)
        fits.append(fit_once(backbone, its, root, where, seed, device, precision, dict(kept), workers))
    _refuse_other_classes(full, fits)
    shas = [weights_digest(each.weights) for each in fits]
    random_start = starts_from_random(full.run.options)
    crossfit.save(folder, canonical(backbone), weights_digest(full.weights), shas, part_of, random_start)
    return CrossFit.open(folder)


def _parts_of(full: Fit, parts: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The manifest's rows with the splits and labels of the fit on all clips, and each clip's part.

    Rows keep the training clips whose labels are not used, as unlabelled ones, so that all fits know the same limits of
    skeletons; clips that could not be read take no part.
    """
    settings, options = full.run.settings, full.run.options
    rows = split_by(manifest_rows(settings), settings.split_column)
    failed = rows["clip_id"].isin([failure.clip_id for failure in full.failures]).to_numpy(bool)
    examples = clips(rows, ~failed, settings.validation, quiet=True, seed=settings.validation_seed)
    target, train = target_of(options, examples), examples.splits[TRAIN]
    labels = keep_fraction(train.labels[target], options.label_fraction, options.label_seed)
    labelled, unlabelled = ([train.names[i] for i in found.tolist()] for found in labelled_sets(labels))
    _check_fitted(full, labelled)
    split = {name: its for its, part in examples.splits.items() for name in part.names}
    rows = rows.assign(**{SPLIT: rows["clip_id"].map(split).fillna("")})
    for column in (t for t in TARGETS if t in rows):
        rows[column] = rows[column].mask(rows["clip_id"].isin(unlabelled))
    classes = pd.Series(labels.tolist(), index=train.names)
    return rows, draw_parts(rows[rows["clip_id"].isin(labelled)], classes, parts)


def _check_fitted(full: Fit, labelled: list[str]) -> None:
    """The clips to be cut must be those that the fit on all clips trained on, and first weights must know none."""
    facts = full.facts
    before = origin(full.run.options)
    known = {*before.fitted_on, *before.validated_on} if before is not None else set()
    if seen := sorted(known.intersection(labelled)):
        raise OptionError(
            f"init={full.run.options.init} has seen the labels of {len(seen)} of these clips, such as {seen[0]}, so "
            "that no fit can leave them out: start from other weights."
        )
    if set(facts.fitted_on) - known != set(labelled):
        raise OptionError(
            f"{full.path} was fitted on other clips than its manifest gives now: delete that folder to fit anew."
        )


def _refuse_other_parts(folder: Path, rows: pd.DataFrame, allow_absolute: bool) -> None:
    """A fit that was begun on other rows is not continued."""
    file = folder / MANIFEST
    if not file.exists():
        return
    if file.read_bytes() != manifest_text(rows, str(file), allow_absolute=allow_absolute).encode():
        raise OptionError(
            f"{folder} leaves other clips out than are to be left out now (another number of parts, or another "
            "manifest): choose another folder for out, or delete this one."
        )


def _refuse_other_classes(full: Fit, fits: list[Fit]) -> None:
    """Class scores and skeleton images of all networks must mean the same."""
    for each in fits:
        if each.facts.classes != full.facts.classes:
            lost = sorted(set(full.facts.classes) - set(each.facts.classes))
            raise OptionError(
                f"{each.path}: no clip but those left out has class {', '.join(map(str, lost))}, so that this network "
                "has fewer class scores than the others: cut more parts, or label clips of it in several groups."
            )
        if each.facts.limits != full.facts.limits:
            raise OptionError(f"{each.path} saw other limits of skeletons than {full.path}: delete both to fit anew.")
