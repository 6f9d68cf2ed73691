"""The one stage of a fit: cross-entropy on the labelled training clips, judged on the validation clips."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau

from kdcache.backbones.vacnn import VACNN
from kdcache.data.ondemand.examples import Examples
from kdcache.errors import OptionError
from kdcache.methods.contract import Batch, Stage
from kdcache.methods.fit_networks import Classifier
from kdcache.methods.fit_options import Options

NAME = "fit"
JUDGE = "validation"


def groups(module: Classifier, options: Options) -> list[dict[str, Any]]:
    """What the optimiser moves; VA-CNN's view network at a rate of its own."""
    net = module.net
    if not isinstance(net, VACNN):
        return [{"params": list(module.parameters())}]
    seen = {id(p) for p in net.resnet.parameters()}
    view = [p for p in module.parameters() if id(p) not in seen]
    return [{"params": list(net.resnet.parameters())}, {"params": view, "lr": options.view_lr}]


def stage(module: Classifier, examples: Examples, options: Options) -> Stage:
    """The stage with resolved options; ``OptionError`` where they need validation clips and there are none."""
    tests = {JUDGE: examples.items(JUDGE)} if len(examples.used.get(JUDGE, ())) else {}
    if options.schedule == "plateau" and not tests:
        raise OptionError(
            "schedule=plateau follows the accuracy on validation clips, and there are none: set "
            "validation=0.2, or schedule=steps."
        )
    parameters = groups(module, options)
    lr, decay = float(options.lr or 0), float(options.weight_decay or 0)
    optimizer = (
        Adam(parameters, lr, weight_decay=decay)
        if options.optimizer == "adam"
        else SGD(parameters, lr, momentum=options.momentum, weight_decay=decay)
    )
    scheduler = (
        ReduceLROnPlateau(optimizer, "max", options.gamma, options.plateau, cooldown=options.plateau)
        if options.schedule == "plateau"
        else MultiStepLR(optimizer, list(options.milestones or ()), options.gamma)
    )

    def losses(batch: Batch) -> dict[str, Tensor]:
        scores, _ = module(batch["x"])
        return {"loss": F.cross_entropy(scores.float(), batch["y"])}

    return Stage(
        name=NAME,
        module=module,
        train=examples.items("train"),
        losses=losses,
        epochs=int(options.epochs or 0),
        batch_size=int(options.batch_size or 0),
        tests=tests,
        optimizer=optimizer,
        scheduler=scheduler,
        grad_clip=float(options.grad_clip or 0),
        patience=int(options.patience or 0),
    )
