"""RULSTM (Furnari & Farinella, *What Would You Expect? Anticipating Egocentric Actions with Rolling-Unrolling LSTMs and
Modality Attention*, ICCV 2019): what happens next, said 2, 1.75 … 0.25 seconds before it begins.

A clip is S = 14 vectors, a step of 0.25 s apart, the last one step before the action starts. After 6 steps of encoding
the network answers at each of the 8 that are left, τ_a = 8 … 1 steps ahead; the loss is the mean of the 8 cross
entropies. Settings are those of the authors' code (https://github.com/fpv-iplab/rulstm), which decides where the paper
says less: dropout, the number of times that the last input is unrolled, the epoch that counts.

Stages: 1. sequence completion: the unrolling LSTM reads the steps that really follow, so that the rolling one learns to
summarise and the unrolling one to continue; 2. anticipation, from the weights of stage 1. With ``modalities``, both for
each of them, then 3. modality attention, all branches trained along. A stage hands on its best epoch on validation
clips.

Left out: the authors' early recognition, object detections other than as vectors, and ensembles of runs (``kdcache
evaluate RUN RUN`` averages probabilities, the paper's late fusion).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from kdcache import losses
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.contract import AnswerAxis, Batch, Data, Input, Predictor, Stage, predict_with, reseed
from kdcache.methods.labels import Clips, check_leak
from kdcache.methods.options import LeakOptions, TrainOptions, refuse_unless_positive, refuse_unless_share
from kdcache.methods.rulstm_networks import ModalityAttention, RollingUnrolling
from kdcache.methods.search import Knob
from kdcache.metrics.anticipation import at_time, measure_times

FUSION = "fusion"
"""Name of the stage that fuses modalities."""

Predict = Callable[[Batch], Tensor]

ALONE = "x"
"""Name of the input where there is one modality."""


@dataclass(frozen=True, kw_only=True)
class RulstmOptions(LeakOptions, TrainOptions):
    """Everything that can be set. Defaults are those of the authors' code, or ``[reconstructed]``."""

    modalities: tuple[str, ...] = ()
    """Streams that modality attention fuses, such as rulstm/rgb,rulstm/flow,rulstm/obj; none: one branch on one stream
    (``stream=a,b`` joins vectors instead)."""
    encoding_steps: int = 6
    """Steps before the first answer."""
    anticipation_steps: int = 8
    """Steps that are answered at; with the ones before, what a clip must have."""
    step_s: float = 0.25
    """Seconds between steps, and from the last one to the action."""
    completion: bool = True
    """Train by sequence completion first."""
    completion_epochs: int | None = None
    """Epochs of that; none: ``epochs``."""
    hidden: int = 1024
    """Width of both LSTMs."""
    dropout: float = 0.8
    """On the inputs of both LSTMs, before the classifier, and within modality attention."""
    at_s: float = 1.0
    """τ_a at which the best epoch is chosen, and whose answers count where one is asked for: the challenges' second."""
    monitor: Literal["top1", "top5", "mean_top5_recall"] = "top5"
    """Metric that chooses it; the authors take mean_top5_recall on EPIC-KITCHENS-100."""
    lr: float = 0.01
    """Learning rate of SGD."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    batch_size: int = 128
    """Clips in a batch."""
    epochs: int = 100
    """Passes over the training clips, of each stage."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is multiplied by ``gamma``: none."""
    patience: int = 100
    """Epochs without a better one after which a stage ends; at ``epochs`` or more it never ends early and still hands
    on its best epoch, as the authors do. 0 hands on the last, and is for data without validation clips."""

    def __post_init__(self) -> None:
        LeakOptions.__post_init__(self)
        TrainOptions.__post_init__(self)
        refuse_unless_positive(self, "anticipation_steps", "step_s", "hidden", "completion_epochs")
        if self.encoding_steps < 0:
            raise OptionError(f"encoding_steps={self.encoding_steps}: it must not be negative.")
        refuse_unless_share(self, "dropout")
        if self.at_s not in self.times:
            known = ", ".join(f"{tau:g}" for tau in self.times)
            raise OptionError(f"at_s={self.at_s:g}: the network answers {known} s before an action; choose one.")
        if self.completion_epochs is not None and not self.completion:
            raise OptionError("completion_epochs means nothing with completion=false: leave it out.")
        names = self.names
        if (
            len(self.modalities) == 1
            or len(set(names)) < len(names)
            or not all(n.isidentifier() for n in names)
            or FUSION in names
        ):
            raise OptionError(
                f"modalities={','.join(self.modalities)}: name two streams or more that differ in their last part, "
                f"such as rulstm/rgb,rulstm/flow, which may not be {FUSION}; one stream is named by stream=."
            )

    @property
    def times(self) -> tuple[float, ...]:
        """τ_a of each answer in seconds, the earliest answer first: 2.0 … 0.25."""
        return tuple(round(n * self.step_s, 9) for n in range(self.anticipation_steps, 0, -1))

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs: of each modality the last part of its stream's name."""
        return tuple(name.rpartition("/")[2] for name in self.modalities) or (ALONE,)


Options = RulstmOptions
KNOBS = (
    Knob("dropout", (0.0, 0.25, 0.5, 0.75), (), (0.9,), of_objective=False),
    Knob("weight_decay", (1e-5, 1e-4, 1e-3), (1e-6, 0.0), (1e-2, 1e-1), of_objective=False),
)
"""What is searched of each row. [reconstructed]"""


def inputs(options: RulstmOptions) -> tuple[Input, ...]:
    """x_1 … x_S of each clip, one for each modality."""
    streams = options.modalities or ("*",)
    return tuple(Input(name=n, stream=s, axes="TD") for n, s in zip(options.names, streams, strict=True))


def resolve(options: RulstmOptions, data: Data) -> RulstmOptions:
    """Decide target and epochs; refuse clips of other steps than the options say, and leaks."""
    options = replace(options, target=options.choose_target(data))
    check_leak(data, Clips(options, data).unlabelled, options.label_fraction, options.allow_leak)
    steps = options.encoding_steps + options.anticipation_steps
    for name in options.names:
        found = data.inputs[name].shape[0]
        if found != steps:
            raise OptionError(
                f"Clips have {found} steps and encoding_steps={options.encoding_steps} + anticipation_steps="
                f"{options.anticipation_steps} are {steps}: set these, or import the features with --frames {steps}."
            )
        _check_times(options, data.info.get("imported", {}).get(name, {}))
    if options.completion:
        return replace(options, completion_epochs=options.completion_epochs or options.epochs)
    return options


def stages(options: RulstmOptions, data: Data) -> Iterator[Stage]:
    """For each modality completion, then anticipation; then their fusion. ``options`` are resolved."""
    clips = Clips(options, data)
    branches = {name: _branch(options, data, name) for name in options.names}
    for name, branch in branches.items():
        if options.completion:
            completing, epochs = partial(_completion, branch, name), options.completion_epochs
            yield _stage(options, completion_stage(options, name), branch, completing, clips, name, epochs=epochs)
        yield _stage(options, branch_stage(options, name), branch, predict_with(branch, name), clips, name)
    if options.modalities:
        fusion = _fusion(options, data, branches)
        yield _stage(options, FUSION, fusion, partial(_fused, fusion), clips, *options.names)


def predictor(options: RulstmOptions, data: Data) -> Predictor:
    """The branch of the one modality, or all of them fused."""
    branches = {name: _branch(options, data, name) for name in options.names}
    trained = [stage(options, n) for n in options.names for stage in (completion_stage, branch_stage)]
    if not options.completion:
        trained = trained[1::2]
    common: dict[str, Any] = {
        "inputs": {name: data.inputs[name] for name in options.names},
        "role": "clip",
        "metrics_fn": partial(measure_times, times=options.times),
        "axis": AnswerAxis("tau_s", options.times, options.at_s),
    }
    if options.modalities:
        fusion = _fusion(options, data, branches)
        return Predictor(
            stage=FUSION, module=fusion, predict=partial(_fused, fusion), trained_in=tuple(trained), **common
        )
    branch = branches[ALONE]
    return Predictor(
        stage=trained[-1], module=branch, predict=predict_with(branch), trained_in=tuple(trained[:-1]), **common
    )


def completion_stage(options: RulstmOptions, name: str) -> str:
    """Name of the stage that trains a modality by sequence completion."""
    return f"{name}-completion" if options.modalities else "completion"


def branch_stage(options: RulstmOptions, name: str) -> str:
    """Name of the stage that trains a modality to anticipate."""
    return name if options.modalities else "anticipation"


def _check_times(options: RulstmOptions, sampling: dict[str, Any]) -> None:
    """``OptionError`` where an import took steps of another length; a warning where the last seems to be elsewhere."""
    step, lag = sampling.get("step"), sampling.get("lag")
    if step is not None and step != options.step_s:
        raise OptionError(
            f"The features were imported with --step {step:g}, and step_s={options.step_s:g}: set step_s={step:g}."
        )
    if lag is not None and lag < options.step_s:
        logger.warning(
            "the features' last step lies %g s before the end of each clip: clips that end where their action starts "
            "show more than step_s=%g allows; import them with --lag %g",
            lag,
            options.step_s,
            options.step_s,
        )


def _branch(options: RulstmOptions, data: Data, name: str) -> RollingUnrolling:
    reseed(data, name)
    width, classes = data.inputs[name].shape[1], len(data.classes[options.target])
    branch = RollingUnrolling(width, classes, options.hidden, options.dropout, options.anticipation_steps)
    return branch.to(data.device)


def _fusion(options: RulstmOptions, data: Data, branches: dict[str, RollingUnrolling]) -> ModalityAttention:
    reseed(data, FUSION)
    return ModalityAttention(branches, options.hidden, options.dropout).to(data.device)


def _completion(branch: RollingUnrolling, name: str, batch: Batch) -> Tensor:
    logits: Tensor = branch(batch[name], completion=True)["logits"]
    return logits


def _fused(fusion: ModalityAttention, batch: Batch) -> Tensor:
    logits: Tensor = fusion(batch)["logits"]
    return logits


def _objective(predict: Predict, batch: Batch) -> dict[str, Tensor]:
    """The mean over clips and times of the cross entropy."""
    return {"CE": losses.l_cls(predict(batch), batch["y"]).mean()}


def _stage(
    options: RulstmOptions, name: str, module: nn.Module, predict: Predict, clips: Clips, *names: str, **more: Any
) -> Stage:
    """A stage on these inputs of the clips with the optimiser of the options, scored at every τ_a."""
    return options.stage(
        name,
        module,
        clips.train(*names),
        partial(_objective, predict),
        clips.held_out(*names),
        predict=predict,
        metrics_fn=partial(measure_times, times=options.times),
        monitor=at_time(options.monitor, options.at_s),
        **more,
    )
