"""A run: the folder of one training, and what can be asked of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from kdcache.data.prepare import Prepared, prepare
from kdcache.data.splits import held_out
from kdcache.engine import checkpoint
from kdcache.errors import OptionError, unknown
from kdcache.methods import method as method_module
from kdcache.methods.contract import HELD_OUT, UNLABELLED, Items, Predictor, Samples
from kdcache.metrics.early import percent
from kdcache.runs.config import build, read_config, to_table
from kdcache.runs.predictions import Probabilities, measure_all, probabilities

CONFIG, METRICS, PREDICTIONS = "config.toml", "metrics.json", "predictions.csv"
BATCH = 64  # clips scored at once when predicting


class Run:
    """The folder of one training, finished or not; opening it reads its configuration alone.

    It holds ``config.toml``, ``metrics.csv`` (a row an epoch), ``metrics.json`` (the result), ``predictions.csv``,
    ``environment.json``, ``recipes.json``, TensorBoard events, and a folder with the weights of each stage.

    Raises:
        OptionError: the folder is no run.
    """

    def __init__(self, path: str | Path, prepared: Prepared | None = None) -> None:
        self.path = Path(path)
        self.settings, self.options, self.resolved = read_config(self.path / CONFIG)
        self._method = method_module(self.settings.method)
        self._resolved_options = build(self._method.Options, self.resolved["options"])
        self._predictors: dict[str, Predictor] = {}
        if prepared is not None:
            self.prepared = prepared

    def __str__(self) -> str:
        lines = [str(self.path)]
        for which, splits in self.metrics.items():
            if which.partition("@")[0] in ("last", "best"):
                for split, targets in splits.items():
                    for target, values in targets.items():
                        shown = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
                        lines.append(f"  {which}, {split} {target}: {shown}")
        return "\n".join(lines)

    @property
    def config(self) -> dict[str, Any]:
        """Settings, ``options`` and ``resolved``, as in ``config.toml``."""
        return {**to_table(self.settings), "options": to_table(self.options), "resolved": self.resolved}

    @property
    def target(self) -> str:
        """Which label is predicted: label, verb or noun."""
        return str(self._resolved_options.target)

    @property
    def metrics(self) -> dict[str, Any]:
        """The result: ``last`` and ``best@<split>`` → split → target → metric in per cent.

        Also ``selected_by`` (the split that chose the best epoch), ``epochs``, and ``stages``: the last row of each.
        ``OptionError`` while the run has not finished.
        """
        path = self.path / METRICS
        if not path.exists():
            raise self._unfinished()
        return dict(json.loads(path.read_text()))

    @property
    def history(self) -> pd.DataFrame:
        """``metrics.csv``: one row an epoch of each stage, with losses, learning rate and held-out metrics.

        Without rows where there was nothing to train.
        """
        return pd.read_csv(self.path / "metrics.csv")

    @cached_property
    def prepared(self) -> Prepared:
        """The cache that the run was trained on; its arrays stay in the shards."""
        return prepare(self.settings, self.options, lambda _: None, {"budget": 0})

    def predict(self, clips: str | Sequence[str] | None = None, which: str = "last") -> pd.DataFrame:
        """Class probabilities, one row a clip (index ``clip_id``), one column a class (the manifest's labels).

        Early recognition gives a row for each clip and degree of progress (index ``clip_id``, ``observed`` in %).

        Args:
            clips: clip ids of the cache, or a split ("validation", "test", "train"; None: the one the run was judged
                on), of which the clips that the network sees are taken.
            which: ``last`` or ``best`` weights.

        Raises:
            OptionError: an unknown split or clip, or a run that has not finished.
        """
        data, clip_ids = self.prepared.data, self.prepared.clips.clip_ids
        if clips is None or isinstance(clips, str):
            rows = self._samples(clips).rows[self._predictor(which).side]
            rows = rows[rows >= 0]
        else:
            row_of = {clip: row for row, clip in enumerate(clip_ids)}
            missing = [clip for clip in clips if clip not in row_of]
            if missing:
                raise OptionError(f"Clip {missing[0]!r} is not among the run's clips in {self.settings.shards}.")
            rows = torch.tensor([row_of[clip] for clip in clips], dtype=torch.int64)
        probs = self._probabilities(rows, which)
        index = pd.Index([clip_ids[row] for row in rows.tolist()], name="clip_id")
        if probs.ndim == 3:
            index = pd.MultiIndex.from_product([index, percent(probs.shape[1])], names=["clip_id", "observed"])
        return pd.DataFrame(probs.reshape(-1, probs.shape[-1]), index=index, columns=data.classes[self.target])

    def predictions(self, which: str = "last") -> pd.DataFrame:
        """Class probabilities of all held-out examples.

        Columns: ``pair`` (where clips come in pairs), ``clip_id``, ``observed`` (where there are degrees of progress),
        ``split``, the label, and one for each class.
        """
        data, side = self.prepared.data, self._predictor(which).side
        parts = []
        for split in (s for s in HELD_OUT if s in data.splits):
            samples = data.splits[split]
            seen = samples.rows[side] >= 0
            frame = self.predict(split, which)
            known, repeats = frame.index.nlevels, len(frame) // max(1, int(seen.sum()))
            frame = frame.reset_index()
            names = [name for name, there in zip(samples.names, seen.tolist(), strict=True) if there]
            labels = [
                data.classes[self.target][i] if i >= 0 else pd.NA for i in samples.labels[self.target][seen].tolist()
            ]
            frame.insert(known, "split", split)
            frame.insert(known + 1, self.target, pd.Series(labels, dtype="Int64").repeat(repeats).to_numpy())
            if side != "clip":
                frame.insert(0, "pair", names)
            parts.append(frame)
        return pd.concat(parts, ignore_index=True)

    def network(self, which: str = "last") -> nn.Module:
        """The network that answers, with its ``last`` or ``best`` weights, in evaluation mode on the run's device.

        Raises:
            OptionError: a run that has not finished.
        """
        return self._predictor(which).module.eval()

    def evaluate(self, split: str | None = None, many_shot: int | None = None) -> dict[str, Any]:
        """``metrics`` computed anew from the weights, on ``split`` or on every held-out split.

        ``many_shot`` adds recalls over the classes with more training samples than that.

        Raises:
            OptionError: an unknown split, one without labels, or a run that has not finished.
        """
        known = self.prepared.data.splits
        splits = [s for s in HELD_OUT if s in known and self._usable(known[s]).any()] if split is None else [split]
        summary = checkpoint.load_summary(self.path / self._predictor("last").stage)
        assert summary is not None
        by = summary["selected_by"]
        results = {"selected_by": by, "epochs": {"last": summary["epochs"], "best": summary["best_epoch"]}}
        for which, key in (("last", "last"), ("best", f"best@{by}")):
            results[key] = {name: self._measure(self._samples(name), which, many_shot) for name in splits}
        return results

    def _unfinished(self) -> OptionError:
        return OptionError(f"{self.path} has not finished training: repeat its command with this out to go on.")

    def _predictor(self, which: str) -> Predictor:
        """The network with its last or best weights."""
        if which not in ("last", "best"):
            raise unknown("weights", which, ["last", "best"])
        if which not in self._predictors:
            predictor: Predictor = self._method.predictor(self._resolved_options, self.prepared.data)
            folder = self.path / predictor.stage
            if checkpoint.load_summary(folder) is None:
                raise self._unfinished()
            checkpoint.load_weights(folder / f"{which}.safetensors", predictor.module)
            self._predictors[which] = predictor
        return self._predictors[which]

    def _samples(self, split: str | None) -> Samples:
        splits = self.prepared.data.splits
        name = held_out(splits) if split is None else split
        if name not in splits:
            raise unknown("split", name, list(splits))
        return splits[name]

    def _probabilities(self, rows: Tensor, which: str) -> Probabilities:
        predictor = self._predictor(which)
        return probabilities(predictor.module, self.prepared.data, Items({"x": (predictor.stream, rows)}), BATCH)

    def _usable(self, samples: Samples) -> Tensor:
        """Which examples have a label and the clip that the network sees."""
        return (samples.rows[self._predictor("last").side] >= 0) & (samples.labels[self.target] != UNLABELLED)

    def _measure(self, samples: Samples, which: str, many_shot: int | None) -> dict[str, dict[str, float]]:
        usable = self._usable(samples)
        if not usable.any():
            raise OptionError("No example of this split has a label to evaluate against: choose another split.")
        seen = samples.rows[self._predictor(which).side]
        labels = {target: y[usable] for target, y in samples.labels.items()}
        probs = self._probabilities(seen[usable], which)
        if probs.ndim == 3:
            return {self.target: dict(self._predictor(which).measure(probs, labels[self.target].numpy()))}
        return measure_all(probs, labels, self.prepared.data, self.target, many_shot)
