"""Which samples keep their labels when only a part of a training set is labelled, and that no other label is used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.contract import HELD_OUT, UNLABELLED, VALIDATION, BatchSource, Data, InputStream
from kdcache.methods.options import LabelOptions


def keep_fraction(y: Tensor, fraction: float, seed: int) -> Tensor:
    """Hide labels so that every class keeps the same share of them, at least one each.

    ``y`` is int64 ``[n]`` with ``UNLABELLED`` where there is none; so is the result. The draw depends on ``seed``
    alone, and a larger fraction keeps all that a smaller one does.
    """
    if fraction >= 1:
        return y
    kept = torch.full_like(y, UNLABELLED)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    for c in sorted(set(y[y != UNLABELLED].tolist())):
        members = order[y[order] == c]
        chosen = members[: max(1, round(fraction * len(members)))]
        kept[chosen] = c
    return kept


def labelled_sets(y: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the labelled and of the unlabelled examples of ``y``, int64."""
    return (y != UNLABELLED).nonzero()[:, 0], (y == UNLABELLED).nonzero()[:, 0]


def held_out_sets(data: Data, target: str, inputs: Mapping[str, InputStream], role: str) -> dict[str, BatchSource]:
    """Of each held-out split the labelled examples whose inputs are there: what a stage is scored on."""
    found = {}
    for split in (s for s in HELD_OUT if s in data.splits):
        rows, y = data.splits[split].rows[role], data.splits[split].labels[target]
        there = (rows >= 0) & (y != UNLABELLED)
        for stream in inputs.values():
            if stream.available is not None:
                there &= stream.available[rows.clamp(min=0)]
        usable = there.nonzero()[:, 0]
        if len(usable):
            found[split] = BatchSource({name: (s, rows[usable]) for name, s in inputs.items()}, {"y": y[usable]})
    return found


class Clips:
    """The labelled clips of a run, as stages read them."""

    def __init__(self, options: LabelOptions, data: Data) -> None:
        self.data, self.target = data, options.target
        train = data.splits["train"]
        y = keep_fraction(train.labels[options.target], options.label_fraction, options.label_seed)
        labelled, self.unlabelled = labelled_sets(y)
        self.rows, self.y = train.rows["clip"][labelled], y[labelled]

    def train(self, *names: str) -> BatchSource:
        """These inputs of the training clips, with their classes ``y``."""
        return BatchSource({name: (self.data.inputs[name], self.rows) for name in names}, {"y": self.y})

    def held_out(self, *names: str, **streams: InputStream) -> dict[str, BatchSource]:
        """These inputs, and ``streams`` by name, of the clips of each held-out split."""
        inputs = {n: self.data.inputs[n] for n in names} | streams
        return held_out_sets(self.data, self.target, inputs, "clip")


def fitted_on_training(data: Data) -> tuple[int, int]:
    """How many training clips have features of a backbone that was fitted on their own labels, and how many there are.

    A classifier is more certain on these than it will be on new clips: a head that trains on them, and a teacher above
    all, is almost never wrong there, and learns little that holds elsewhere.
    """
    clips = {data.clip_ids[i] for rows in data.splits["train"].rows.values() for i in rows.tolist() if i >= 0}
    return len(clips & data.fitted - data.cross_fitted), len(clips)


def warn_if_fitted_on_training(data: Data) -> None:
    """Warn of the clips that ``fitted_on_training`` counts."""
    seen, count = fitted_on_training(data)
    if seen:
        logger.warning(
            "the backbone of these features was fitted on the labels of %d of the %d training clips, so that class "
            "scores on them, a teacher's too, are surer than on new clips: `kdcache fit --cross-fit K` gives each a "
            "network that has not seen it",
            seen,
            count,
        )


def check_leak(data: Data, unlabelled: Tensor, fraction: float, allow: bool) -> None:
    """Refuse features whose backbone was fitted with labels that the method must not know.

    These are labels of test clips and of training examples that the method treats as ``unlabelled`` (indices); where
    only a ``fraction`` of the labels is kept, those of validation clips too (else this is only a warning: it flatters
    the choice of the epoch). Validation clips count where the very network that computed them has seen their label;
    labels of the others were used as soon as any network has.

    Raises:
        OptionError: there are such clips, unless ``allow``; then it is a warning.
    """
    if not data.fitted:
        return
    rows = {"unlabelled": [r[unlabelled] for r in data.splits["train"].rows.values()]}
    rows |= {s: list(data.splits[s].rows.values()) for s in HELD_OUT if s in data.splits}
    clips = {kind: {data.clip_ids[i] for r in each for i in r.tolist() if i >= 0} for kind, each in rows.items()}
    known = {kind: data.fitted - data.cross_fitted if kind == VALIDATION else data.fitted for kind in clips}
    seen = {kind: len(known[kind] & names) for kind, names in clips.items() if known[kind] & names}
    if not seen:
        return
    shown = ", ".join(f"{count} {kind}" for kind, count in seen.items())
    if not allow and (fraction < 1 or set(seen) - {"validation"}):
        how = f" --set label_fraction={fraction:g}" if fraction < 1 else ""
        raise OptionError(
            f"The backbone of these features was fitted with labels of {shown} clips: fit it on the labelled training "
            f"clips alone (kdcache fit …{how}) and extract again, or set allow_leak=true."
        )
    logger.warning("the backbone of these features was fitted with labels of %s clips", shown)
