"""A method of two stages, each with its own schedule: vectors at levels → a linear map, then a classifier behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from kdcache.methods.contract import Batch, BatchSource, Data, Input, Predictor, Stage, reseed
from kdcache.methods.labels import held_out_sets, labelled_sets
from kdcache.methods.options import LabelOptions
from kdcache.metrics.early import measure_levels

SCHEDULES = {"map": (0.1, 2), "classifier": (0.05, 2)}  # stage → learning rate, epochs


@dataclass(frozen=True, kw_only=True)
class Options(LabelOptions):
    lr_factor: float = 1.0
    length: float = 1.0
    width: int = 4


def inputs(options: Options) -> tuple[Input, ...]:
    return (Input(name="x", axes="ND"),)


def resolve(options: Options, data: Data) -> Options:
    return replace(options, target=options.choose_target(data))


def build(options: Options, data: Data) -> nn.Sequential:
    reseed(data, "net")
    features, classes = data.inputs["x"].shape[-1], len(data.classes[options.target])
    return nn.Sequential(nn.Linear(features, options.width), nn.ReLU(), nn.Linear(options.width, classes))


def stages(options: Options, data: Data) -> Iterator[Stage]:
    net, train = build(options, data), data.splits["train"]
    labels = train.labels[options.target]
    seen, _ = labelled_sets(labels)
    source = BatchSource({"x": (data.inputs["x"], train.rows["clip"][seen])}, {"y": labels[seen]})
    for (name, (lr, epochs)), part in zip(SCHEDULES.items(), (net[0], net[2]), strict=True):
        yield Stage(
            name=name,
            module=net,
            train=source,
            losses=lambda batch: {"CE": cross_entropy(net(batch["x"])[:, -1], batch["y"])},
            predict=lambda batch: net(batch["x"]),
            epochs=max(1, round(epochs * options.length)),
            batch_size=8,
            eval_sets=held_out_sets(data, options.target, {"x": data.inputs["x"]}, "clip"),
            optimizer=SGD(part.parameters(), lr * options.lr_factor),
            metrics_fn=measure_levels,
            monitor="auc",
        )


def predictor(options: Options, data: Data) -> Predictor:
    net = build(options, data)

    def predict(batch: Batch):
        return net(batch["x"])

    known = {"inputs": {"x": data.inputs["x"]}, "role": "clip", "metrics_fn": measure_levels}
    return Predictor(stage="classifier", module=net, predict=predict, **known)
