"""Relation distillation in memory: what each stage trains, from what, and the fusion of appearance and motion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from egocentric_cases import check_stage
from memory_stream import MemoryStream, data_on
from torch.nn import functional as F

from kdcache import backbones, losses
from kdcache.backbones.resnext3d import ResNeXt3D, ResNeXt3DTail
from kdcache.data.loader import feed, in_order
from kdcache.errors import OptionError, WeightsError
from kdcache.methods import relation
from kdcache.methods.contract import Split
from kdcache.methods.heads import initialise
from kdcache.methods.relation_networks import Average, Branch, Fused, Fusion
from kdcache.runs import presets

pytestmark = pytest.mark.usefixtures("one_thread")
CACHED = {
    "light": ({"head": "light", "backbone": "i3d", "width": 8}, (480, 4, 6, 6), "MaxPool3d_4a_3x3"),
    "i3d": ({"head": "tail", "backbone": "i3d"}, (480, 4, 4, 4), "MaxPool3d_4a_3x3"),
    "resnext101": ({"head": "tail"}, (1024, 4, 4, 4), "layer3"),
}
NETWORKS = {"i3d": ("i3d-rgb", "i3d-flow"), "resnext101": ("resnext101", "resnext101-flow")}


@pytest.fixture(scope="module")
def checkpoints():
    """Random weights of every network, drawn once."""
    drawn: dict[str, dict[str, torch.Tensor]] = {}

    def of(name):
        if name not in drawn:
            drawn[name] = dict(backbones.build(name, "random:0").state_dict())
        return drawn[name]

    return of


def data_for(options, shape, layer, checkpoints, free=10**9):
    """Random maps (frames) of the inputs: three training clips and one that is held out."""
    rng = torch.Generator().manual_seed(0)
    streams = {}
    for one in relation.inputs(options):
        if options.start == "frames":
            values = torch.randint(256, (4, 1, *shape, 3 if one.name == "rgb" else 2), generator=rng, dtype=torch.uint8)
        else:
            values = torch.rand(4, 2, *shape, generator=rng)
        streams[one.name] = MemoryStream(values, free)
    splits = {
        name: Split([str(i) for i in of], {"clip": torch.tensor(of)}, {"label": torch.tensor([i % 2 for i in of])})
        for name, of in {"train": [0, 1, 2], "validation": [3]}.items()
    }
    return data_on(
        streams,
        splits=splits,
        classes={"label": [0, 1]},
        roles=dict.fromkeys(streams, "clip"),
        layers=dict.fromkeys(streams, layer),
        backbone=lambda name: checkpoints(NETWORKS[options.backbone][name == "flow"]),
    )


def prepared(kind, checkpoints, free=10**9, **given):
    """Options and data of cached maps."""
    common, shape, layer = CACHED[kind]
    options = relation.Options(**common, **given, target="label", length=1e-4)
    data = data_for(options, shape, layer, checkpoints, free)
    return relation.resolve(options, data), data


EVERY = {
    "fused": ({"fusion": "sum"}, ["teacher", "appearance", "student", "fused"], {"L_ce", "L_rep", "L_ir"}),
    "student": ({"network": "student"}, ["teacher", "student"], {"L_ce", "L_rep", "L_ir"}),
    "MARS": ({"network": "student", "ir": "none"}, ["teacher", "student"], {"L_ce", "L_rep"}),
    "relations alone": ({"network": "student", "rep": 0.0}, ["teacher", "student"], {"L_ce", "L_ir"}),
    "neither": ({"network": "student", "rep": 0.0, "ir": "none"}, ["student"], {"L_ce"}),
    "rgb": ({"network": "rgb"}, ["appearance"], None),
    "flow": ({"network": "flow"}, ["teacher"], None),
    "two-stream": ({"network": "two-stream"}, ["teacher", "appearance", "average"], None),
    "three-stream": ({"network": "three-stream"}, ["teacher", "appearance", "student", "average"], None),
    "mean": ({"fusion": "average"}, ["teacher", "appearance", "student", "average"], None),
}


@pytest.mark.parametrize("name", list(EVERY))
def test_stages_of_each_answer(name, checkpoints):
    given, expected, terms = EVERY[name]
    options, data = prepared("light", checkpoints, **given)
    seen = []
    for stage in relation.stages(options, data):
        seen.append(stage.name)
        if stage.optimizer is not None:
            found = check_stage(stage, data)  # gradients reach exactly what it trains, and nothing else moves
            assert set(found) == ((terms or {"L_ce"}) if stage.name == "student" and terms else set(found))
    assert seen == expected
    predictor = relation.predictor(options, data)
    assert predictor.stage == expected[-1]
    assert set(predictor.trained_in) <= set(expected[:-1])
    assert ("flow" in predictor.inputs) == (name in ("flow", "two-stream", "three-stream"))
    when = {one.name: one.when for one in relation.inputs(options)}
    assert all(when[n] == "always" for n in predictor.inputs)


@pytest.mark.parametrize("kind", ["i3d", "resnext101"])
def test_tails_train_whole_and_start_from_the_checkpoint(kind, checkpoints):
    options, data = prepared(kind, checkpoints, network="student")
    taps = {"i3d": ("Mixed_4f", "Mixed_5c"), "resnext101": ("layer4",)}
    assert options.compared == taps[kind]
    for stage in relation.stages(options, data):
        own = checkpoints(NETWORKS[options.backbone][stage.name == "teacher"])
        net = stage.module.net
        for key, value in net.state_dict().items():
            assert key in net.classifier or torch.equal(value, own[key])
        check_stage(stage, data)


def test_resnext_from_frames_compares_layer_3_too(checkpoints):
    options = relation.Options(
        start="frames", network="student", frames=8, size=32, init="random:0", init_flow="random:0", target="label"
    )
    data = data_for(options, (8, 32, 32), "", checkpoints)
    options = relation.resolve(options, data)
    assert options.compared == ("layer3", "layer4")
    *_, student = relation.stages(options, data)
    terms = check_stage(student, data)  # layer 3 and all before it are reached
    assert set(terms) == {"L_ce", "L_rep", "L_ir"}


def test_the_objective_is_the_sum_of_its_terms(checkpoints):
    options, data = prepared("light", checkpoints, network="student", rep=7.0, mu=3.0, dropout=0.0)
    teacher, student = relation.stages(options, data)
    (batch,) = feed(student.train, in_order(student.train, 8), data.device)
    S, T = student.module(batch["rgb"]), teacher.module(data.inputs["flow"].data[:3, 0])
    with torch.no_grad():
        terms = student.losses(batch)
    expected = {
        "L_ce": F.cross_entropy(S["logits"], batch["y"]),
        "L_rep": 7 * losses.l_rep(S["z"], T["z"]).mean(),
        "L_ir": 3 * losses.l_ir(S["map"], losses.relation(T["map"], "channel")).mean(),
    }
    # both in training mode would differ: the teacher is frozen and evaluates
    assert not teacher.module.training
    torch.testing.assert_close(terms, {k: v.detach() for k, v in expected.items()})


def test_cross_entropy_of_mers_reaches_the_classifier_alone(checkpoints):
    for kind in CACHED:
        options, data = prepared(kind, checkpoints, network="student", ce="fc", ir="none")
        *_, student = relation.stages(options, data)
        (batch,) = feed(student.train, in_order(student.train, 8), data.device)
        student.module.train().requires_grad_(True)
        student.losses(batch)["L_ce"].backward()
        reached = {name for name, p in student.module.named_parameters() if p.grad is not None and p.grad.any()}
        classifier = {id(p) for p in student.module.classifier.parameters()}
        assert reached == {name for name, p in student.module.named_parameters() if id(p) in classifier}
        check_stage(student, data)  # and L_rep reaches the rest


def test_targets_kept_in_memory_equal_those_computed_in_each_step(checkpoints):
    for given in ({}, {"ir": "position"}, {"ir": "batch"}):
        terms = []
        for free in (10**9, 0):
            options, data = prepared("light", checkpoints, free, network="student", **given)
            *_, student = relation.stages(options, data)
            assert ("flow" in student.train.inputs) == (free == 0)
            (batch,) = feed(student.train, in_order(student.train, 8, view=1), data.device)
            torch.manual_seed(0)
            terms.append(student.losses(batch))
        torch.testing.assert_close(*terms)


def test_fusion_starts_as_the_average_and_trains_alone(checkpoints):
    for kind in ("attention", "gate"):
        options, data = prepared("light", checkpoints, fusion=kind)
        *_, fused = relation.stages(options, data)
        module = fused.module.eval()
        x = data.inputs["rgb"].data[:, 0]
        out = module(x)
        torch.testing.assert_close(out["weights"], torch.full((4, 2, 8), 0.5))
        mean = (module.A(x)["z"] + module.S(x)["z"]) / 2
        torch.testing.assert_close(out["logits"], module.fusion.classify(mean))
        trained = {id(p) for group in fused.optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in module.fusion.parameters()}


@pytest.mark.parametrize("kind", ["attention", "gate", "se", "concat", "sum"])
def test_fusion_on_pooled_features_is_the_fused_network(kind, checkpoints):
    options, data = prepared("light", checkpoints, fusion=kind)
    *_, fused = relation.stages(options, data)
    for parameter in fused.module.fusion.parameters():  # away from the start
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    fused.module.eval()
    (batch,) = feed(fused.eval_sets["validation"], in_order(fused.eval_sets["validation"], 8), data.device)
    torch.testing.assert_close(fused.predict(batch), fused.module(batch["rgb"])["logits"])
    (batch,) = feed(fused.train, in_order(fused.train, 8, view=1), data.device)
    expected = F.cross_entropy(fused.module(batch["rgb"])["logits"], batch["y"])
    torch.testing.assert_close(fused.losses(batch), {"L_ce": expected})


def test_fusion_by_hand():
    a, m = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    for kind, expected in (("sum", [4.0, 1.0]), ("concat", [1.0, 2.0, 3.0, -1.0]), ("se", [0.5, 1.0, 1.5, -0.5])):
        fusion = Fusion(2, 3, kind, dropout=0.0)
        torch.testing.assert_close(fusion(a, m)["logits"], fusion.classify(torch.tensor([expected])))
    fusion = Fusion(2, 3, "attention", ratio=4)
    with torch.no_grad():
        fusion.weigh[2].bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))  # of a's channels, then of m's
    w = 1 / (1 + torch.exp(torch.tensor([2.0, 2.0])))
    torch.testing.assert_close(fusion.weights(a, m), torch.stack([w, 1 - w])[None])


def test_published_widths_have_the_parameters_of_the_reconstruction():
    count = sum(p.numel() for p in Fusion(2048, 101).weigh.parameters())
    assert count == 4096 * 256 + 256 + 256 * 4096 + 4096
    assert sum(p.numel() for p in Fusion(1024, 101).weigh.parameters()) == 2 * 2048 * 128 + 128 + 2048


def test_end_to_end_moves_the_streams_at_a_tenth_of_the_rate(checkpoints):
    options, data = prepared("light", checkpoints, end_to_end=True, ratio=2)
    *_, fused = relation.stages(options, data)
    module = fused.module
    assert isinstance(module, Fused)
    rates = {id(p): group["lr"] for group in fused.optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in module.fusion.parameters()} == {1e-2}
    assert {rates[id(p)] for p in (*module.A.without_classifier(), *module.S.without_classifier())} == {1e-3}
    assert not {id(p) for p in module.A.classifier.parameters()} & set(rates)  # the fusion has its own
    torch.nn.init.normal_(module.fusion.weigh[2].weight)  # at the start, nothing passes it
    check_stage(fused, data)


def test_mean_of_probabilities(checkpoints):
    options, data = prepared("light", checkpoints, network="three-stream")
    *_, stage = relation.stages(options, data)
    assert isinstance(stage.module, Average)
    (batch,) = feed(stage.eval_sets["validation"], in_order(stage.eval_sets["validation"], 8), data.device)
    stage.module.eval()
    each = [net(batch[stage.module.reads[name]])["logits"].softmax(-1) for name, net in stage.module.branches.items()]
    assert len(each) == 3
    torch.testing.assert_close(stage.predict(batch).exp(), torch.stack(each).mean(0))


def test_resnext_tail_continues_the_whole_network(checkpoints):
    net = ResNeXt3D(400).eval()
    net.load_state_dict(checkpoints("resnext101"))
    x = torch.rand(1, 3, 8, 32, 32)
    tail = ResNeXt3DTail(7, "layer2").eval()
    initialise(tail, net.state_dict())
    with torch.no_grad():
        outputs = dict(tail.endpoints(net.features(x, "layer2")))
        for layer in ("layer3", "layer4", "pool"):
            torch.testing.assert_close(outputs[layer], net.features(x, layer))
    assert outputs["logits"].shape == (1, 7)
    with pytest.raises(WeightsError, match=r"not a 3-D ResNeXt-101's: it lacks layer3"):
        initialise(tail, {})
    with pytest.raises(OptionError, match="layer4"):
        ResNeXt3DTail(7, "layer4")


def test_a_branch_pools_what_it_says(checkpoints):
    for kind in CACHED:
        options, data = prepared(kind, checkpoints, network="student")
        *_, student = relation.stages(options, data)
        assert isinstance(student.module, Branch)
        out = student.module.eval()(data.inputs["rgb"].data[:2, 0])
        torch.testing.assert_close(out["z"], torch.einsum("bcthw,bthw->bc", out["last"], out["where"]))
        assert out["z"].shape[1] == student.module.width


REFUSED = {
    "taps=layer3: S trains no map of that name: choose from layer4": ("resnext101", {"taps": ("layer3",)}),
    "taps=pool: S trains no map": ("resnext101", {"taps": ("pool",)}),
    "taps=mixed4a: S trains no map": ("i3d", {"taps": ("mixed4a",)}),
    "ir=temporal: layer4 has a single time step here": ("one step", {"ir": "temporal"}),
    "ir=position: Mixed_4f has 1568 positions": ("large", {"ir": "position", "taps": ("mixed4f",)}),
}


@pytest.mark.parametrize("says", list(REFUSED))
def test_layers_on_which_a_loss_would_train_nothing_are_refused(says, checkpoints):
    kind, given = REFUSED[says]
    shapes = {"one step": ("resnext101", (1024, 2, 4, 4)), "large": ("i3d", (480, 8, 14, 14))}
    kind, shape = shapes.get(kind, (kind, CACHED[kind][1] if kind in CACHED else None))
    options = relation.Options(**CACHED[kind][0], **given, target="label")
    data = data_for(options, shape, CACHED[kind][2], checkpoints)
    with pytest.raises(OptionError, match=says):
        relation.resolve(options, data)


@pytest.mark.parametrize("table", ["ucf101", "i3d", "light"])
def test_every_row_has_maps_to_compare_at_the_published_size(table, checkpoints):
    shape, layer = ((1024, 8, 7, 7), "layer3") if table == "ucf101" else ((480, 8, 14, 14), "MaxPool3d_4a_3x3")
    shape = (480, 4, 7, 7) if table == "light" else shape  # averages of 2 x 2 x 2 positions
    seen = {}
    for row in presets.tables("relation")[table].rows:
        options = relation.Options(**{"head": "tail", **row.options}, target="label") if not row.quoted else None
        if options is not None and options.distils and options.ir in ("position", "temporal"):
            data = data_for(options, shape, layer, checkpoints)
            seen[options.ir] = relation.resolve(options, data).compared
    last = {"ucf101": "layer4", "i3d": "Mixed_5c", "light": "map"}[table]
    assert seen["position"] == (last,)  # of 1,568 positions all pairs would be compared
    assert seen["temporal"][-1] == last


def test_maps_of_other_frames_than_the_options_are_refused(checkpoints):
    common, _, layer = CACHED["resnext101"]
    options = relation.Options(**common, frames=64, target="label")
    data = data_for(options, (1024, 2, 7, 7), layer, checkpoints)
    with pytest.raises(OptionError, match=r"frames=64 and size=112 give maps \[1024, 8, 7, 7\] of layer3, and those"):
        relation.resolve(options, data)
    fits = relation.Options(**common, frames=16, target="label")
    assert relation.resolve(fits, data).frames == 16


def test_schedules_are_written_out(checkpoints):
    options, _ = prepared("light", checkpoints, student="lr=0.5", network="student")
    assert options.teacher == "sgd lr=1e-2 epochs=60 milestones=40/55 weight_decay=1e-4"
    assert options.student == "lr=0.5"
    tail, _ = prepared("i3d", checkpoints, network="rgb")
    assert tail.appearance == "sgd lr=1e-3 dampening=0.9 epochs=400 plateau=10 weight_decay=1e-5"


def test_maps_of_rgb_and_flow_must_match(checkpoints):
    options, data = prepared("light", checkpoints)
    data.inputs["flow"] = MemoryStream(torch.rand(4, 2, 480, 2, 6, 6))
    with pytest.raises(OptionError, match=r"rgb \[480, 4, 6, 6\] of MaxPool3d_4a_3x3, flow \[480, 2, 6, 6\] of"):
        relation.resolve(options, data)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"network": "rgb", "mu": 0.5}, "mu=0.5 means nothing with network=rgb"),
        ({"ir": "none", "mu": 0.5}, "mu=0.5 means nothing with ir=none"),
        ({"ir": "position", "ir_norm": "gatys"}, "ir_norm=gatys means nothing with ir=position"),
        ({"fusion": "sum", "ratio": 4}, "ratio=4 means nothing with fusion=sum"),
        ({"fusion": "average", "end_to_end": True}, "end_to_end=True means nothing with fusion=average"),
        ({"start": "frames", "head": "light"}, "head=light means nothing with start=frames"),
        ({"init": "random:0"}, "init=random:0 means nothing with start=maps"),
        ({"rep": 0.0, "ir": "none", "ce": "fc"}, "ce=fc leaves all but the classifier"),
        ({"rep": -1.0}, "rep=-1.0: it must not be negative"),
        ({"mu": 0.0}, "mu=0.0: give a positive number"),
        ({"dropout": 1.0}, "dropout=1.0: give a share from 0 to below 1"),
        ({"student": "sgd lr=nan"}, "lr"),
        ({"student": "plateau=3 milestones=4"}, "at milestones, by decay after every epoch or on a plateau"),
    ],
)
def test_options_that_mean_nothing_are_refused(given, says):
    with pytest.raises(OptionError, match=says):
        relation.Options(**given)


def test_schedules_of_the_light_head():
    light = relation.Options(head="light", student="lr=0.5")
    assert (light.schedule("student").lr, light.schedule("student").epochs) == (0.5, 60)
    assert light.schedule("teacher").plateau == 0
    tail = relation.Options(head="tail", student="lr=0.5")
    assert (tail.schedule("student").lr, tail.schedule("student").epochs, tail.schedule("student").dampening) == (
        0.5,
        400,
        0.9,
    )


def test_a_plateau_needs_validation_clips_and_says_so_before_anything_trains(checkpoints):
    common, shape, layer = CACHED["light"]
    options = relation.Options(**common, fused="plateau=3", target="label")
    data = data_for(options, shape, layer, checkpoints)
    del data.splits["validation"]
    with pytest.raises(OptionError, match=r'fused: plateau=3 .* there are none: hold .* set fused="plateau=0"'):
        relation.resolve(options, data)
    options = relation.Options(**common, teacher="plateau=3", target="label")
    data = data_for(options, shape, layer, checkpoints)
    data.inputs["flow"].available = torch.tensor([True, True, True, False])
    with pytest.raises(OptionError, match=r"teacher: plateau=3 .* no labelled validation clip has flow: extract flow"):
        relation.resolve(options, data)


def test_a_users_way_for_the_rate_to_fall_replaces_the_methods():
    tail = relation.Options(head="tail", teacher="milestones=10")
    assert (tail.schedule("teacher").milestones, tail.schedule("teacher").plateau) == ((10,), 0)
    light = relation.Options(head="light", teacher="plateau=0")
    assert light.schedule("teacher").milestones == (40, 55)


def test_logits_of_mers_are_those_that_answer(checkpoints):
    for kind in CACHED:
        options, data = prepared(kind, checkpoints, network="student")
        *_, student = relation.stages(options, data)
        net = student.module.eval()
        out = net(data.inputs["rgb"].data[:2, 0])
        torch.testing.assert_close(net.classify(out), out["logits"])


def test_maps_of_other_moments_are_refused(checkpoints):
    options, data = prepared("light", checkpoints)
    other = replace(data, sampled={"rgb": "spread", "flow": "5 a second"})
    with pytest.raises(OptionError, match="of other frames of a clip, or of another size"):
        relation.resolve(options, other)
