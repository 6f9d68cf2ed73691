"""A run: the folder of one training, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from kdcache.backbones.metadata import file_name, write
from kdcache.data.splits import held_out
from kdcache.data.training_data import TrainingData
from kdcache.engine import checkpoint
from kdcache.engine.scoring import Probabilities, probabilities
from kdcache.errors import OptionError, unknown
from kdcache.log import logger
from kdcache.methods import method as method_module
from kdcache.methods.checks import check_predictor
from kdcache.methods.contract import (
    HELD_OUT,
    UNLABELLED,
    VALIDATION,
    AnswerAxis,
    BatchSource,
    Input,
    Predictor,
    Split,
)
from kdcache.metrics.early import percent
from kdcache.options import build, to_table
from kdcache.recipe import Recipe
from kdcache.runs import folder
from kdcache.runs.config import RunSettings, read_config
from kdcache.runs.folder import CONFIG, METRICS
from kdcache.runs.predictions import baselines, measure_all, score_table
from kdcache.runs.prepare import absolute, prepare


class Run:
    """The folder of one training, finished or not; opening it reads its configuration alone.

    It holds ``config.toml``, ``metrics.csv`` (a row an epoch), ``metrics.json`` (the result), ``predictions.csv``,
    ``environment.json``, ``recipes.json``, TensorBoard events, and a folder with the weights of each stage.

    Raises:
        OptionError: the folder is no run.
    """

    def __init__(self, path: str | Path, opened: TrainingData | None = None) -> None:
        self.path = Path(path)
        self.settings, self.options, self.resolved = read_config(self.path / CONFIG)
        self._method = method_module(self.settings.method)
        self._resolved_options = build(self._method.Options, self.resolved.get("options", {}))
        self._predictors: dict[str, Predictor] = {}
        if opened is not None:
            self.training_data = opened

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"<kdcache.Run {self.path}: {self.settings.method} on {self.settings.shards}, {state}>"

    def _repr_html_(self) -> str:
        """For notebooks: its result, a row for each epoch that counts, split and target."""
        head = pd.DataFrame([{"run": str(self.path), "method": self.settings.method, "on": self.settings.shards}])
        if not self.finished:
            return str(head.assign(state="not finished").to_html(index=False))
        rows = [
            {"weights": which, "split": split, "target": target} | values
            for which, splits in self.metrics.items()
            if which.partition("@")[0] in ("last", "best")
            for split, targets in splits.items()
            for target, values in targets.items()
        ]
        table = pd.DataFrame(rows).to_html(index=False, na_rep="", float_format="{:.1f}".format)
        return f"{head.to_html(index=False)}\n{table}"

    def __str__(self) -> str:
        scores = [
            ((which, split, target), values)
            for which, splits in self.metrics.items()
            if which.partition("@")[0] in ("last", "best")
            for split, targets in splits.items()
            for target, values in targets.items()
        ]
        lines = [str(self.path), *(f"  {line}" for line in score_table(scores))]
        for split, known in self.metrics.get("baselines", {}).items():
            lines.append(
                f"  {split}: {known['clips']} clips; chance {known['chance']:.1f}, "
                f"always the most frequent training class {known['majority']:.1f}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Folder, method, seed and the result, as plain data."""
        return {
            "path": str(self.path),
            "method": self.settings.method,
            "seed": self.settings.seed,
            "metrics": self.metrics,
        }

    @property
    def finished(self) -> bool:
        """Whether it has been trained and judged to its end."""
        return (self.path / METRICS).exists()

    @property
    def config(self) -> dict[str, Any]:
        """Settings, ``options`` and ``resolved``, as in ``config.toml``."""
        return {**to_table(self.settings), "options": to_table(self.options), "resolved": self.resolved}

    @property
    def resolved_options(self) -> Any:
        """The options of its method with every ``auto`` decided."""
        return self._resolved_options

    def on_cache(self, shards: str | Path) -> Run:
        """The same run on another cache: one that was moved, or one of other clips."""
        other = Run(self.path)
        other.settings = replace(self.settings, shards=absolute(shards), manifest=None, root=None)
        return other

    @property
    def target(self) -> str:
        """Which label is predicted: label, verb or noun."""
        return str(self._resolved_options.target)

    @property
    def inputs(self) -> list[Input]:
        """What the network that answers may read: privileged inputs are for training alone."""
        return [one for one in self._method.inputs(self._resolved_options) if one.when == "always"]

    @property
    def metrics(self) -> dict[str, Any]:
        """The result: ``last`` and ``best@<split>`` → split → target → metric in per cent.

        Also ``selected_by`` (the split that chose the best epoch), ``epochs``, ``stages`` (the last row of each) and
        ``steps``: optimiser steps that the network which answers took in all its stages; ``baselines``: of each split
        the number of clips, and the accuracy by chance.
        ``OptionError`` while the run has not finished.
        """
        if not self.finished:
            raise self._unfinished()
        return folder.result(self.path)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Of each cached stream that its training read; empty where it read none, or has not begun."""
        kept = folder.recipes(self.path)
        return {name: its["recipe"] for name, its in kept.items()}

    @property
    def history(self) -> pd.DataFrame:
        """``metrics.csv``: one row an epoch of each stage, with losses, learning rate and held-out metrics.

        Without rows where there was nothing to train.
        """
        return folder.history(self.path)

    @cached_property
    def training_data(self) -> TrainingData:
        """What the run was trained on, less privileged inputs; cached arrays stay in the shards."""
        return self._open(self.settings)

    def on(self, device: str) -> Run:
        """The same run on another device."""
        other = Run(self.path)
        other.settings = replace(self.settings, device=device)
        return other

    def _open(self, settings: RunSettings) -> TrainingData:
        """Its data, with the examples that it was trained on; a warning where the cache no longer has them."""
        known = {"budget": 0} | {name: self.resolved[name] for name in ("stream",) if name in self.resolved}
        opened = prepare(settings, self._resolved_options, known, training=False)
        trained_on = self.resolved.get("samples")
        if trained_on in (None, opened.resolved["samples"]):
            return opened
        if settings.validation and "test" in opened.data.splits:  # 0.1 held no pairs out beside test pairs
            as_before = prepare(replace(settings, validation=0.0), self._resolved_options, known, training=False)
            if as_before.resolved["samples"] == trained_on:
                return as_before
        logger.warning(
            "%s was trained on other examples than its cache gives now: its splits may hold clips that it has seen",
            self.path,
        )
        return opened

    def predict(self, clips: str | Sequence[str] | None = None, which: str = "last") -> pd.DataFrame:
        """Class probabilities, one row a clip (index ``clip_id``), one column a class (the manifest's labels).

        Early recognition gives a row for each clip and observation ratio (index ``clip_id``, ``observed`` in %), a
        method of several anticipation times one for each clip and time (``clip_id``, ``tau_s`` in seconds).

        Args:
            clips: clip ids of the cache, or a split ("validation", "test", "train"; None: the one the run was judged
                on), of which the clips that the network sees are taken.
            which: ``last`` or ``best`` weights.

        Raises:
            OptionError: an unknown split or clip, or a run that has not finished.
        """
        data, clip_ids = self.training_data.data, self.training_data.examples.clip_ids
        if clips is None or isinstance(clips, str):
            rows = self._split(clips).rows[self._predictor(which).role]
            rows = rows[self._seen(rows, which)]
            if not len(rows):
                raise OptionError(f"No clip of {clips or held_out(data.splits)} has what the network reads.")
        else:
            row_of = {clip: row for row, clip in enumerate(clip_ids)}
            missing = [clip for clip in clips if clip not in row_of]
            if missing:
                raise OptionError(f"Clip {missing[0]!r} is not among the run's clips in {self.settings.shards}.")
            rows = torch.tensor([row_of[clip] for clip in clips], dtype=torch.int64)
            if not (seen := self._seen(rows, which)).all():
                unseen = next(clip for clip, there in zip(clips, seen.tolist(), strict=True) if not there)
                raise OptionError(
                    f"Clip {unseen!r} has no array of what the network reads: extract it, or choose other clips."
                )
        probs = self._probabilities(rows, which)
        index = pd.Index([clip_ids[row] for row in rows.tolist()], name="clip_id")
        if probs.ndim == 3:
            axis = self.answer_axis(probs.shape[1], which)
            index = pd.MultiIndex.from_product([index, axis.values], names=["clip_id", axis.name])
        return pd.DataFrame(probs.reshape(-1, probs.shape[-1]), index=index, columns=data.classes[self.target])

    def answer_axis(self, answers: int, which: str = "last") -> AnswerAxis:
        """What so many answers of one clip stand for: shares of it, in per cent, unless the method says otherwise."""
        ratios = tuple(percent(answers))
        return self._predictor(which).axis or AnswerAxis("observed", ratios, ratios[-1])

    def predictions(self, which: str = "last", main_only: bool = False) -> pd.DataFrame:
        """Class probabilities of all held-out examples.

        Columns: ``pair`` (where clips come in pairs), ``clip_id``, ``observed`` or ``tau_s`` (where there are levels of
        progress or several anticipation times), ``split``, the label, and one for each class.

        Args:
            which: ``last`` or ``best`` weights.
            main_only: of several answers of an example only the main one.
        """
        data, role = self.training_data.data, self._predictor(which).role
        parts = []
        for split in (s for s in HELD_OUT if s in data.splits):
            samples = data.splits[split]
            seen = self._seen(samples.rows[role], which)
            if not seen.any():  # a fit on sources reads labelled clips alone
                continue
            frame = self.predict(split, which)
            if main_only and frame.index.nlevels == 2:
                at = frame.index.get_level_values(1)
                frame = frame[at == self.answer_axis(at.nunique(), which).main]
            known, repeats = frame.index.nlevels, len(frame) // max(1, int(seen.sum()))
            frame = frame.reset_index()
            names = [name for name, there in zip(samples.names, seen.tolist(), strict=True) if there]
            labels = [
                data.classes[self.target][i] if i >= 0 else pd.NA for i in samples.labels[self.target][seen].tolist()
            ]
            frame.insert(known, "split", split)
            frame.insert(known + 1, self.target, pd.Series(labels, dtype="Int64").repeat(repeats).to_numpy())
            if role != "clip":
                frame.insert(0, "pair", names)
            parts.append(frame)
        return pd.concat(parts, ignore_index=True)

    def network(self, which: str = "last") -> nn.Module:
        """The network that answers, with its ``last`` or ``best`` weights, in evaluation mode on the run's device.

        Raises:
            OptionError: a run that has not finished.
        """
        return self.predictor(which).module

    def predictor(self, which: str = "last") -> Predictor:
        """The network that answers, with its weights and what it reads, in evaluation mode; see ``network``."""
        predictor = self._predictor(which)
        predictor.module.eval()
        return predictor

    def export(self, path: str | Path | None = None, which: str | None = None) -> Path:
        """Write the backbone's weights as a file that ``extract --weights`` takes; only runs of ``recognition`` have
        any.

        Args:
            path: of the file; default ``<backbone>.safetensors`` in the run's folder.
            which: ``last`` or ``best`` weights; default the run's option ``keep``, ``last`` where nothing selected.

        Raises:
            OptionError: a run of another method, or one that has not finished.
        """
        from kdcache.methods import recognition  # loads torchvision, which no other method needs

        if self.settings.method != "recognition":
            raise OptionError(f"{self.path} is a run of {self.settings.method}: only recognition trains a backbone.")
        options = self._resolved_options
        if options.backbone is None:
            raise OptionError(f"{self.path} trained a classifier on cached features, no backbone: nothing to export.")
        if which is None:
            summary = checkpoint.load_summary(self.path / recognition.STAGE)
            which = options.keep if summary and summary["selected_by"] == VALIDATION else "last"
        network = self._predictor(which).module
        assert isinstance(network, recognition.Classifier)
        path = Path(path) if path is not None else self.path / file_name(options.backbone)
        facts = recognition.metadata(options, self.training_data.data, recognition.origin(options))
        write(path, network.net.state_dict(), facts)
        return path

    def evaluate(self, split: str | None = None, many_shot: int | None = None) -> dict[str, Any]:
        """``metrics`` computed again from the weights, on ``split`` or on every held-out split.

        ``many_shot`` adds recalls over the classes with more training samples than that.

        Raises:
            OptionError: an unknown split, one without labels, or a run that has not finished.
        """
        known = self.training_data.data.splits
        splits = [s for s in HELD_OUT if s in known and self._usable(known[s]).any()] if split is None else [split]
        summary = checkpoint.load_summary(self.path / self._predictor("last").stage)
        assert summary is not None
        selected, epochs, weights = summary["selected_by"] == VALIDATION, {"last": summary["epochs"]}, {"last": "last"}
        if selected:
            epochs["best"], weights["best"] = summary["best_epoch"], f"best@{VALIDATION}"
        results: dict[str, Any] = {"selected_by": VALIDATION if selected else "", "epochs": epochs}
        for which, key in weights.items():
            results[key] = {name: self._measure(self._split(name), which, many_shot) for name in splits}
        results["baselines"] = {name: self._baselines(self._split(name)) for name in splits}
        return results

    def _unfinished(self, stage: str = "") -> OptionError:
        of = f" stage {stage!r}, which its method predicts from" if stage else ""
        return OptionError(f"{self.path} has not finished training{of}: repeat its command with this out to go on.")

    def _predictor(self, which: str) -> Predictor:
        """The network with its last or best weights."""
        if which not in ("last", "best"):
            raise unknown("weights", which, ["last", "best"])
        if which not in self._predictors:
            predictor = self._method.predictor(self._resolved_options, self.training_data.data)
            check_predictor(predictor, self._method.inputs(self._resolved_options), self.settings.method)
            stage = self.path / predictor.stage
            summary = checkpoint.load_summary(stage)
            if summary is None:
                raise self._unfinished(predictor.stage)
            if which == "best" and summary["selected_by"] != VALIDATION:
                raise OptionError(
                    f"{self.path} has no best epoch, for it had no validation clips to select one: use last."
                )
            folder.check_files(self.path, CONFIG, f"{predictor.stage}/{checkpoint.SUMMARY}")
            checkpoint.load_weights(stage / f"{which}.safetensors", predictor.module)
            self._predictors[which] = predictor
        return self._predictors[which]

    def _split(self, split: str | None) -> Split:
        splits = self.training_data.data.splits
        name = held_out(splits) if split is None else split
        if name not in splits:
            raise unknown("split", name, list(splits))
        return splits[name]

    def _probabilities(self, rows: Tensor, which: str) -> Probabilities:
        predictor = self._predictor(which)
        source = BatchSource({name: (stream, rows) for name, stream in predictor.inputs.items()})
        data = self.training_data.data
        return probabilities(predictor.module, predictor.predict, data, source, predictor.batch_size)

    def _seen(self, rows: Tensor, which: str) -> Tensor:
        """Which clips are there in every stream that the network reads, bool ``[n]``."""
        there = rows >= 0
        for stream in self._predictor(which).inputs.values():
            if stream.available is not None:
                there &= stream.available[rows.clamp(min=0)]
        return there

    def _usable(self, samples: Split) -> Tensor:
        """Which examples have a label and the clips that the network sees."""
        role = self._predictor("last").role
        return self._seen(samples.rows[role], "last") & (samples.labels[self.target] != UNLABELLED)

    def _baselines(self, samples: Split) -> dict[str, float]:
        y = samples.labels[self.target][self._usable(samples)]
        return baselines(self.training_data.data, self.target, y)

    def _measure(self, samples: Split, which: str, many_shot: int | None) -> dict[str, dict[str, float]]:
        usable = self._usable(samples)
        if not usable.any():
            raise OptionError("No example of this split has a label to evaluate against: choose another split.")
        seen = samples.rows[self._predictor(which).role]
        labels = {target: y[usable] for target, y in samples.labels.items()}
        probs = self._probabilities(seen[usable], which)
        several = self._predictor(which).metrics_fn if probs.ndim == 3 else None
        return measure_all(probs, labels, self.training_data.data, self.target, many_shot, several)
