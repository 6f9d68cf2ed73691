"""Options of anticipation: defaults are the paper's, or ``[reconstructed]`` where it gives none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdcache.errors import OptionError
from kdcache.methods.options import (
    LeakOptions,
    TrainOptions,
    refuse_negative,
    refuse_unless_positive,
    refuse_unless_share,
)


@dataclass(frozen=True, kw_only=True)
class AnticipationOptions(LeakOptions, TrainOptions):
    """Everything that can be set."""

    network: Literal["anticipation", "recognition", "recognition-early"] = "anticipation"
    """What is evaluated: A; R on x_t (Table 1, first row); or R applied to x_{t-τ} as it is (§3.2)."""
    target: Literal["auto", "label", "verb", "noun"] = "auto"
    """Which column is y_t; ``auto``: label, or verb where there is no label (the paper: verb on EPIC-KITCHENS)."""
    data: Literal["auto", "S", "S+now", "S+U"] = "auto"
    """Training set of A: labelled pairs; these and x_t with the same y_t (Table 3's augmentation); or labelled and
    unlabelled pairs. ``auto``: S+U where the cache has unlabelled pairs, else S."""
    label_fraction: float = 1.0
    """Share of S that keeps its labels, the same for every class and at least one each; the rest joins U (§3.4)."""
    soft_targets: bool = False
    """On S, too, R's prediction is the target of L_c instead of the label: of JHMDB the text says "using the class
    labels or the predicted class probability" (§3.2). R has been trained on these labels. [reconstructed]"""
    pseudo: bool = True
    """The second sum of (1), R's prediction as the label on U. Off: U takes part in (2) alone."""
    temperature: float = 1.0
    """Softens R's prediction and A's alike where R's is the target; the paper has none. [reconstructed]"""
    loss_d: Literal["none", "direct", "RA", "AR", "both"] = "both"
    """L_d: none, L_direct, L̃_d(R, A), L̃_d(A, R) or their sum, equation (3)."""
    lam: float = 1.0
    """λ, the weight of L_d. [reconstructed] On random maps of mixed4a and random weights the gradient of L_d has 0.02
    (light head) or 0.016 (i3d) times the norm of that of L_c, and with ``reduction=sum`` 1,000 or 3,200 times: they are
    equal near λ = 50, and with ``sum`` near 0.001 or 0.0003."""
    alpha: float | None = None
    """α of the attentional pooling; none: 1/√d, as in the paper."""
    distance: Literal["huber", "mse", "kl"] = "huber"
    """Distance inside L_d: Huber with δ = 1 (§3.2), the printed square, or KL over channels [reconstructed]."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over positions and channels; ``sum`` is as printed, ``mean`` keeps λ independent of the map. [reconstructed] On
    maps of one size ``sum`` is ``mean`` with λ times their positions and channels: 50,176 of the light head's of
    mixed4a, 200,704 of mixed5c."""
    layer: str = "mixed5c"
    """I3D layer whose map enters L_d: mixed5c, mixed5b, MaxPool3d_5a_2x2, mixed4f … [reconstructed]"""
    stopgrad_query: bool = False
    """No gradient through a_i where it is the query of L̃_d(A, R). [reconstructed]"""
    head: Literal["auto", "i3d", "light"] = "auto"
    """Network on the cached map: I3D from Mixed_4b on (the paper's), or a light head; ``auto``: i3d with a GPU, light
    on vectors."""
    width: int = 256
    """Channels of the light head, which the paper has not. [reconstructed]"""
    init: Literal["auto", "checkpoint", "teacher", "random"] = "auto"
    """Weights that A starts from: the backbone's checkpoint, R's, or random. R starts from the checkpoint unless this
    is random. ``auto``: checkpoint for i3d [reconstructed], random for the light head, which has no checkpoint."""
    dropout: float = 0.5
    """Before the classifier (I3D's)."""
    lr: float = 0.01
    """Learning rate of SGD. [reconstructed; 0.001 on JHMDB]"""
    batch_size: int = 32
    """Samples in a batch, half of them from U where U takes part. [reconstructed]"""
    epochs: int = 30
    """Of as many steps as a pass over all labelled pairs takes, in either stage. [reconstructed; 60 on JHMDB]"""
    milestones: tuple[int, ...] = (15, 25)
    """Epochs after which the learning rate is multiplied by ``gamma``. [reconstructed]"""
    teacher_lr: float | None = None
    """Learning rate of R; none: ``lr``."""
    teacher_epochs: int | None = None
    """Epochs of R; none: ``epochs``."""
    teacher_milestones: tuple[int, ...] | None = None
    """Epochs after which R's learning rate is multiplied by ``gamma``; none: ``milestones``."""
    teacher_seed: int | None = None
    """Seed of R, so that runs of several seeds share one; none: the run's."""

    def __post_init__(self) -> None:
        LeakOptions.__post_init__(self)
        TrainOptions.__post_init__(self)
        refuse_unless_positive(self, "temperature", "width", "teacher_lr", "teacher_epochs")
        refuse_negative(self, "teacher_seed", "teacher_milestones", "lam", "alpha")
        refuse_unless_share(self, "dropout")
        if self.head == "light" and self.layer != AnticipationOptions.layer:
            raise OptionError(f"layer={self.layer} is for head=i3d; the light head has one map: leave layer out.")
        if self.head == "light" and self.init == "checkpoint":
            raise OptionError("init=checkpoint is for head=i3d; the light head has none: set init=random or teacher.")
        if self.data == "S+now" and (self.loss_d != "none" or self.soft_targets):
            other = "loss_d=none" if self.loss_d != "none" else "soft_targets=false"
            raise OptionError(f"data=S+now is the augmentation without distillation: set {other} too.")

    @property
    def may_distil(self) -> bool:
        """Whether the objective may contain R; ``data=auto`` decides once the pairs are known."""
        return self.network == "anticipation" and (
            self.loss_d != "none" or self.soft_targets or self.data in ("auto", "S+U")
        )
