"""Options of early recognition: defaults are the paper's, or ``[reconstructed]`` where it gives none."""

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
class EarlyOptions(LeakOptions, TrainOptions):
    """Everything that can be set."""

    model: Literal["student", "teacher", "ts-lstm", "rank-lstm", "levels", "knn"] = "student"
    """What is evaluated: S (alone with alpha=0 and beta=0); T, which sees the whole clip at every level; or a baseline:
    TS-LSTM* (Wang et al. 2019), RankLSTM (Ma et al. 2016), a classifier for each level, nearest neighbours."""
    parts: int | None = None
    """N, for features with one vector a time step (``TD``), also where clips differ in length: x_n is the mean of the
    vectors in the n-th of N equal parts of the sequence; a part without a vector repeats the one before (the first:
    the first vector). Whoever sets it vouches that no vector knows anything of later frames. None: the cache holds
    levels of progress (``extract --levels N``)."""
    alpha: float = 0.5
    """α, the weight of L_ts; 0 leaves it and T out."""
    beta: float = 1.0
    """β, the weight of L_self; 0 leaves it out. The paper: 1 on SYSU and NTU, 0.5 on UCF101."""
    tau: int = 1
    """τ, by how many levels the later answer leads in L_self; below N. [reconstructed]"""
    self_detach: bool = True
    """The later answer in L_self is a constant. [reconstructed]"""
    hidden: int = 512
    """Width of S."""
    teacher_hidden: int = 256
    """Width of T in each direction."""
    cell: Literal["auto", "gru", "lstm"] = "auto"
    """Of S and T; ``auto``: gru (§2.1), lstm for the baselines that are named after it."""
    dropout: float = 0.0
    """On the input and before the classifier. [reconstructed]"""
    standardise: bool = False
    """Take each feature less its mean over the levels of all training clips, divided by its standard deviation: for
    features that hardly differ from clip to clip. [reconstructed]"""
    label_fraction: float = 1.0
    """Share of the labels to keep, the same for every class and at least one each; the rest is unlabelled (§3.4)."""
    w_cls: float | None = None
    """Weight of L_cls; none: the share of labelled clips among those that take part, so that a clip's terms weigh the
    same whichever clip it is: 1 with all labels, 0.1 with 10 % (§3.4 lowers it, not saying how far). [reconstructed]
    Under plain SGD it is a factor of the learning rate of L_cls, so a comparison has to search both."""
    lam_mse: float = 1.0
    """TS-LSTM*'s weight of the distance between the latents of S and T. [reconstructed]"""
    lam_mmd: float = 0.1
    """TS-LSTM*'s weight of the distance between their distributions. [reconstructed]"""
    lam_rank: float = 1.0
    """RankLSTM's weight of its ranking loss. [reconstructed]"""
    rank: Literal["score", "margin", "both"] = "both"
    """What must not fall in RankLSTM: the score of the true class, its lead over the others, both. [reconstructed]"""
    k: int = 5
    """How many neighbours vote in knn. [reconstructed]"""
    observed: Literal["mean", "concat"] = "mean"
    """What knn and levels compare of x_1 … x_n: the mean, or all of them. [reconstructed]"""
    lr: float = 0.01
    """Learning rate of SGD."""
    batch_size: int = 64
    """Clips in a batch, labelled and unlabelled as they come. [reconstructed; 32 on SYSU]"""
    epochs: int = 100
    """Passes over the training clips, labelled or not; where labelled ones alone are used, they are repeated to that
    length, so that all rows of a table take as many steps. [reconstructed]"""
    milestones: tuple[int, ...] = (60, 80)
    """Epochs after which the learning rate is multiplied by ``gamma``. [reconstructed]"""
    grad_clip: float = 5.0
    """Largest norm of the gradient; 0 does not clip. [reconstructed]"""
    teacher_lr: float | None = None
    """Learning rate of T; none: ``lr``."""
    teacher_epochs: int | None = None
    """Epochs of T; none: ``epochs``."""
    teacher_milestones: tuple[int, ...] | None = None
    """Epochs after which T's learning rate is multiplied by ``gamma``; none: ``milestones``."""
    teacher_seed: int | None = None
    """Seed of T, so that runs of several seeds share one; none: the run's."""

    def __post_init__(self) -> None:
        LeakOptions.__post_init__(self)
        TrainOptions.__post_init__(self)
        if min(self.alpha, self.beta, self.lam_mse, self.lam_mmd, self.lam_rank, self.w_cls or 0) < 0:
            raise OptionError("alpha, beta, w_cls, lam_mse, lam_mmd and lam_rank are weights: none can be negative.")
        refuse_unless_positive(self, "hidden", "teacher_hidden", "k", "tau", "teacher_lr", "teacher_epochs", "parts")
        refuse_negative(self, "teacher_seed", "teacher_milestones")
        refuse_unless_share(self, "dropout")
        if self.model == "ts-lstm" and self.hidden != 2 * self.teacher_hidden:
            raise OptionError(
                f"model=ts-lstm compares latents: set hidden={2 * self.teacher_hidden}, twice teacher_hidden."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether T has to be trained."""
        return self.model in ("teacher", "ts-lstm") or (self.model == "student" and self.alpha > 0)

    @property
    def distils(self) -> bool:
        """Whether the objective has terms for which a clip needs no label."""
        return self.model == "ts-lstm" or (self.model == "student" and max(self.alpha, self.beta) > 0)
