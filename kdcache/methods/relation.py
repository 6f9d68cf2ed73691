"""Learning and distillating the internal relationship of motion features in action recognition (ICONIP 2020).

Only the abstract and the references of the paper are at hand. What it claims is here: a student that sees RGB learns to
mimic the motion stream, and a light fusion module with attention joins it to the appearance stream. **How** is
reconstructed from what it cites, and every choice is an option: MARS (Crasto et al., CVPR 2019), which it calls its
baseline, for networks, L_rep and schedules; the Gram matrix of style transfer for the internal relationship.

Networks (3-D ResNeXt-101 or I3D): the flow teacher F; the motion student S and the appearance network A, which see RGB.
z are pooled features, X maps:

    L = L_ce(S) + β L_rep(z_S, z_F) + μ mean over taps of L_ir(X_S, X_F)

Stages: 1. F by cross-entropy on flow; 2. A by cross-entropy on RGB; 3. S by L, F frozen; 4. the fusion of z_A and z_S
by cross-entropy, A and S frozen. Left out is what the answer does not need. With β alone S is MARS, with ``ce=fc`` too
it is MERS.

On cached maps the backbone below them is the same for A and S and stays as it is, in evaluation mode (MARS's code,
which trains layer 4 too, lets the batch norms below drift). There L_ir compares layers behind the cached one: the
student's own map there is a constant, and a loss on it would train nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from kdcache import losses
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.contract import VALIDATION, Batch, BatchSource, Data, Input, Outputs, Predictor, Stage, reseed
from kdcache.methods.labels import Clips, check_leak
from kdcache.methods.relation_branches import READS, branch, check_shapes, choose_taps, stream
from kdcache.methods.relation_networks import Average, Branch, Fused, Fusion
from kdcache.methods.relation_options import RelationOptions
from kdcache.methods.relation_pictures import explain
from kdcache.methods.search import Knob
from kdcache.methods.teacher import Teacher

__all__ = ["KNOBS", "Options", "explain", "inputs", "predictor", "resolve", "stages"]

Options = RelationOptions
KNOBS = (
    Knob("rep", (5.0, 15.0, 50.0, 150.0), (1.5, 0.5), (500.0, 1500.0), lambda o: o.has_student and o.rep > 0),
    Knob("mu", (0.1, 0.3, 1.0, 3.0), (0.03, 0.01), (10.0, 30.0), lambda o: o.has_student and o.ir != "none"),
    Knob("dropout", (0.0, 0.25, 0.5, 0.75), (), (0.9,), of_objective=False),
)
"""What is searched of each row. [reconstructed]"""
SYMBOL = {"teacher": "F", "appearance": "A", "student": "S"}


def inputs(options: RelationOptions) -> tuple[Input, ...]:
    """``rgb`` where A or S is part of the answer; ``flow`` where F is, or where S learns from it."""
    names = {READS[name] for name in options.members} | ({"flow"} if options.distils else set())
    return tuple(options.seen(name) for name in ("rgb", "flow") if name in names)


def resolve(options: RelationOptions, data: Data) -> RelationOptions:
    """The options with target, head and taps decided.

    Raises:
        OptionError: labels that have leaked; a tap whose map the student does not change, or of which there is no such
            relation.
    """
    options = replace(options, target=options.choose_target(data))
    check_leak(data, Clips(options, data).unlabelled, options.label_fraction, options.allow_leak)
    if options.start == "maps" and options.head == "auto":
        gpu = data.device.type == "cuda"
        options = replace(options, head="tail" if gpu else "light")
        why = "there is a GPU" if gpu else "no GPU; MARS trains the backbone's tail"
        logger.info("head: %s (%s)", options.head, why)
    check_shapes(options, data)
    options = options.with_schedules()
    _check_plateaus(options, data)
    return choose_taps(options, data) if options.distils else options


def _check_plateaus(options: RelationOptions, data: Data) -> None:
    """``OptionError`` for a stage whose rate follows validation clips that its inputs lack, before any is trained."""
    clips = Clips(options, data)
    for name in (*_branches(options), *(["fused"] if options.last == "fused" else [])):
        schedule = options.schedule(name)
        seen = READS.get(name, "rgb")
        if schedule.plateau and VALIDATION not in clips.held_out(seen):
            why = f"no labelled validation clip has {seen}" if VALIDATION in data.splits else "there are none"
            remedy = f"extract {seen} of some" if VALIDATION in data.splits else "hold some out (validation=0.2)"
            raise OptionError(
                f"{name}: plateau={schedule.plateau} follows the accuracy on validation clips, and {why}: {remedy}, or "
                f'set {name}="plateau=0", perhaps with milestones.'
            )


def _branches(options: RelationOptions) -> tuple[str, ...]:
    """The stages that train F, A and S, as far as they are needed, in their order."""
    return tuple(n for n in READS if n in options.members or (n == "teacher" and options.distils))


def stages(options: RelationOptions, data: Data) -> Iterator[Stage]:
    """F, A and S as far as they are needed, then what joins them."""
    o, clips, trained = options, Clips(options, data), dict[str, Branch]()
    for name in _branches(o):
        net = trained[name] = branch(o, data, name, start=True)
        seen = READS[name]
        source = _train(o, data, clips, seen)
        objective: Callable[[Batch], dict[str, Tensor]] = partial(_cross_entropy, net, seen)
        moved: tuple[str, ...] = ("init_flow" if name == "teacher" else "init", name)
        inputs_of: tuple[str, ...] = ()
        if name == "student" and o.distils:
            source, objective = _distilled(o, data, clips, net, trained["teacher"])
            moved = (*moved, "init_flow", "teacher", "rep", "ce", "ir", "ir_norm", "taps", "mu")
            inputs_of = ("flow",)
        yield o.schedule(name).stage(
            name,
            net,
            source,
            objective,
            _held_out(o, data, clips, seen),
            net.parameters(),
            partial(_logits, net, seen),
            share_key=o.shared(*moved),
            share_inputs=inputs_of,
            **o.stage_fields,
        )
    if o.last == "average":
        yield _average_stage(o, data, clips, trained)
    elif o.last == "fused":
        yield _fusion_stage(o, data, clips, trained)


def predictor(options: RelationOptions, data: Data) -> Predictor:
    """The untrained network that answers, the stage that trains it, and what it sees."""
    o = options
    seen = sorted({READS[name] for name in o.members}, reverse=True)
    module, predict = _answering(o, data)
    return Predictor(
        stage=o.last,
        module=module,
        predict=predict,
        inputs={name: stream(o, data, name) for name in seen},
        role="clip",
        batch_size=o.schedule(o.members[-1]).batch_size,
        trained_in=() if o.last in o.members else o.members,
    )


def _train(options: RelationOptions, data: Data, clips: Clips, *names: str) -> BatchSource:
    return BatchSource({name: (stream(options, data, name), clips.rows) for name in names}, {"y": clips.y})


def _held_out(options: RelationOptions, data: Data, clips: Clips, *names: str) -> dict[str, BatchSource]:
    return clips.held_out(**{name: stream(options, data, name) for name in names})


def _logits(net: nn.Module, seen: str, batch: Batch) -> Tensor:
    logits: Tensor = net(batch[seen])["logits"]
    return logits


def _cross_entropy(net: nn.Module, seen: str, batch: Batch) -> dict[str, Tensor]:
    return {"L_ce": losses.l_c(_logits(net, seen, batch), batch["y"]).mean()}


class _Distillation:
    """L of a batch: cross-entropy, representation and internal relationship."""

    def __init__(self, options: RelationOptions, S: Branch, F: Teacher) -> None:
        self.options, self.S, self.F = options, S, F

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        o, S, F = self.options, self.S(batch["rgb"]), self.F(batch)
        logits = S["logits"]
        if o.ce == "fc":
            logits = self.S.classify(S)
        terms = {"L_ce": losses.l_c(logits, batch["y"]).mean()}
        if o.rep:
            terms["L_rep"] = o.rep * losses.l_rep(S["z"], F["z"]).mean()
        if o.ir == "batch":
            terms["L_ir"] = o.mu * losses.l_ir(S["z"], F["z"], "batch").mean()
        elif o.ir != "none":
            each = [losses.l_ir(S[tap], F[tap], o.ir, o.ir_norm).mean() for tap in o.compared]
            terms["L_ir"] = o.mu * torch.stack(each).mean()
        return terms


def _distilled(
    options: RelationOptions, data: Data, clips: Clips, S: Branch, F: Branch
) -> tuple[BatchSource, _Distillation]:
    """What S is trained on, and its objective. Of F's maps, what L_ir needs is kept."""
    kind = options.ir

    def forward(batch: Batch) -> Outputs:
        out = F(batch["flow"])
        found = {"z": out["z"]}
        if kind != "none":
            found |= {tap: losses.relation(out[tap], kind) for tap in options.compared}
        return found

    names = ("z", *options.compared)
    flow = {"flow": (stream(options, data, "flow"), clips.rows)}
    teacher = Teacher(F, forward, data, flow, options.schedule("teacher").batch_size, names)
    source = _train(options, data, clips, "rgb")
    inputs, fields = teacher.wants()
    source = BatchSource({**source.inputs, **inputs}, {**source.fields, **fields})
    return source, _Distillation(options, S, teacher)


def _answering(
    options: RelationOptions, data: Data, trained: Mapping[str, Branch] | None = None
) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """The network that answers and its ``predict``, of these branches or of untrained ones."""
    nets = {name: trained[name] if trained else branch(options, data, name) for name in options.members}
    module: nn.Module
    if options.last == "fused":
        A, S = nets["appearance"], nets["student"]
        reseed(data, "fusion")
        assert options.fusion != "average"
        fusion = Fusion(A.width, len(data.classes[options.target]), options.fusion, options.ratio, options.dropout)
        module = Fused(A, S, fusion.to(data.device))
        return module, partial(_logits, module, "rgb")
    if options.last == "average":
        module = Average({SYMBOL[name]: net for name, net in nets.items()}, {SYMBOL[n]: READS[n] for n in nets})
        return module, lambda batch: module(batch)["logits"]
    (name,) = options.members
    return nets[name], partial(_logits, nets[name], READS[name])


def _average_stage(options: RelationOptions, data: Data, clips: Clips, trained: Mapping[str, Branch]) -> Stage:
    """Nothing is trained: the mean of the members' probabilities is scored."""
    module, predict = _answering(options, data, trained)
    seen = sorted({READS[name] for name in options.members}, reverse=True)
    return Stage(
        name="average",
        module=module,
        train=_train(options, data, clips, *seen),
        losses=lambda batch: {},
        predict=predict,
        epochs=0,
        batch_size=options.schedule(options.members[-1]).batch_size,
        eval_sets=_held_out(options, data, clips, *seen),
    )


def _fusion_stage(options: RelationOptions, data: Data, clips: Clips, trained: Mapping[str, Branch]) -> Stage:
    """The fusion on z_A and z_S, which are computed once; with ``end_to_end`` on RGB, and A and S go on."""
    module, predict = _answering(options, data, trained)
    assert isinstance(module, Fused)
    schedule, source = options.schedule("fused"), _train(options, data, clips, "rgb")
    eval_sets, moved = _held_out(options, data, clips, "rgb"), module.fusion.parameters()
    if options.end_to_end:
        whole = partial(_cross_entropy, module, "rgb")
        slower = {0.1: [*module.A.without_classifier(), *module.S.without_classifier()]}
        return schedule.stage(
            "fused", module, source, whole, eval_sets, moved, predict, slower=slower, **options.stage_fields
        )

    def pooled(batch: Batch) -> Outputs:
        return {"z": torch.stack([module.A(batch["rgb"])["z"], module.S(batch["rgb"])["z"]], 1)}

    both = nn.ModuleList([module.A, module.S])
    kept = Teacher(both, pooled, data, source.inputs, schedule.batch_size, ("z",))
    source = BatchSource(source.inputs, {**source.fields, **kept.wants()[1]})

    def objective(batch: Batch) -> dict[str, Tensor]:
        out = module.fusion(*kept(batch)["z"].unbind(1))
        return {"L_ce": losses.l_c(out["logits"], batch["y"]).mean()}

    def from_pooled(batch: Batch) -> Tensor:
        logits: Tensor = module.fusion(*batch["z"].unbind(1))["logits"]
        return logits

    for split, held in eval_sets.items():
        z = torch.cat([kept.of(batch)["z"].cpu() for batch in data.batches(held, schedule.batch_size, 0)])
        eval_sets[split] = BatchSource(held.inputs, {**held.fields, "z": z})
    return schedule.stage("fused", module, source, objective, eval_sets, moved, from_pooled, **options.stage_fields)
