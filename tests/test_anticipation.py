"""The method: its objective against the formulas, its stages for every row of the paper's tables, its options."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from memory_stream import MemoryStream, data_on

from kdcache import losses
from kdcache.data import loader as feed
from kdcache.errors import OptionError, WeightsError
from kdcache.methods import anticipation, cells_kernel, method
from kdcache.methods.anticipation import Options
from kdcache.methods.contract import UNLABELLED, Data, Split
from kdcache.methods.heads import I3DHead, LightHead, cells, initialise
from kdcache.methods.labels import keep_fraction
from kdcache.methods.teacher import Teacher
from kdcache.numerics import of_stack
from kdcache.options import build
from kdcache.runs.config import SETTABLE
from kdcache.runs.presets import preset, tables

CPU = torch.device("cpu")
SHAPE = (6, 2, 2, 2)


def small_data(labelled: int = 12, unlabelled: int = 4, room: int = 10**9, **fields) -> Data:
    """Pairs of which the first are labelled; rows 0, 2, … are observed and 1, 3, … the actions."""
    n = labelled + unlabelled

    def samples(first: int, count: int, known: int) -> Split:
        number = torch.arange(first, first + count)
        y = torch.where(torch.arange(count) < known, number % 3, UNLABELLED)
        return Split(
            [f"p{i}" for i in number.tolist()], {"observed": 2 * number, "action": 2 * number + 1}, {"verb": y}
        )

    maps = torch.rand((2 * (n + 4), 2, *SHAPE), generator=torch.Generator().manual_seed(0))
    stream = MemoryStream(maps, room)
    values = {
        "splits": {"train": samples(0, n, labelled), "validation": samples(n, 4, 4)},
        "classes": {"verb": [0, 1, 2]},
    }
    values |= {"roles": {"x": "observed", "x_t": "action"}} | fields
    return data_on({"x": stream, "x_t": stream}, **values)


def all_stages(cached: Data, **options):
    return list(anticipation.stages(anticipation.resolve(Options(head="light", width=4, **options), cached), cached))


def first_batch(stage, size: int = 32):
    plan = feed.in_order(stage.train, size, 1)
    return next(feed.feed(stage.train, plan, CPU))


def test_objective_is_equations_1_and_2():
    data = small_data()
    recognition, stage = all_stages(data, lam=0.5, temperature=2.0, batch_size=16)
    R, A = recognition.module.eval(), stage.module.eval()
    early, now = data.inputs["x"].data[0:32:2, 1], data.inputs["x"].data[1:32:2, 1]
    y = data.splits["train"].labels["verb"]
    with torch.no_grad():
        terms = stage.terms(first_batch(stage))
        (A_scores, A_map), (R_scores, R_map) = ((of["logits"], of["map"]) for of in (A(early), R(now)))
        supervised = torch.nn.functional.cross_entropy(A_scores[:12], y[:12], reduction="sum")
        p = torch.softmax(R_scores[12:] / 2, -1)
        pseudo = 4 * (p * (p.log() - torch.log_softmax(A_scores[12:] / 2, -1))).sum()
        distilled = losses.l_d(A_map, R_map).sum()
    torch.testing.assert_close(terms["L_c"], supervised / 16)
    torch.testing.assert_close(terms["L_c_U"], pseudo / 16)
    torch.testing.assert_close(terms["L_d"], 0.5 * distilled / 16)


def test_soft_targets_replace_the_labels_of_s_and_need_the_teacher():
    data = small_data()
    recognition, stage = all_stages(data, soft_targets=True, loss_d="none", data="S", temperature=2.0, batch_size=12)
    R, A = recognition.module.eval(), stage.module.eval()
    early, now = data.inputs["x"].data[0:24:2, 1], data.inputs["x"].data[1:24:2, 1]
    with torch.no_grad():
        terms = stage.losses(first_batch(stage))
        p = torch.softmax(R(now)["logits"] / 2, -1)
        soft = 4 * (p * (p.log() - torch.log_softmax(A(early)["logits"] / 2, -1))).sum()
    assert set(terms) == {"L_c"}
    torch.testing.assert_close(terms["L_c"], soft / 12)
    options = Options(soft_targets=True, loss_d="none", data="S")
    assert [one.name for one in anticipation.inputs(options)] == ["x", "x_t"]
    with pytest.raises(OptionError, match="set soft_targets=false too"):
        Options(data="S+now", loss_d="none", soft_targets=True)


def test_teacher_is_trained_on_x_t_of_s_alone_and_then_never_changes():
    data = small_data()
    stages = anticipation.stages(anticipation.resolve(Options(head="light", width=4), data), data)
    recognition = next(stages)
    batch = first_batch(recognition)
    assert torch.equal(batch["x"], data.inputs["x"].data[1:24:2, 1])
    assert torch.equal(batch["y"], data.splits["train"].labels["verb"][:12])
    assert set(recognition.losses(batch)) == {"L_c"}
    assert torch.equal(recognition.eval_sets["validation"].inputs["x"][1], data.splits["validation"].rows["action"])
    stage = next(stages)
    assert not recognition.module.training
    assert not any(p.requires_grad for p in recognition.module.parameters())
    before = {k: v.clone() for k, v in recognition.module.state_dict().items()}
    sum(stage.losses(first_batch(stage)).values()).backward()
    stage.optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in recognition.module.state_dict().items())
    assert torch.equal(stage.eval_sets["validation"].inputs["x"][1], data.splits["validation"].rows["observed"])


def test_targets_kept_in_memory_equal_those_computed_in_each_step():
    kept, computed = (all_stages(small_data(room=room), batch_size=16)[1] for room in (10**9, 0))
    assert "x_t" not in kept.train.inputs
    assert "x_t" in computed.train.inputs
    kept.module.eval(), computed.module.eval()  # no dropout
    torch.testing.assert_close(kept.losses(first_batch(kept)), computed.losses(first_batch(computed)))


def test_teacher_logs_when_its_targets_do_not_fit(caplog):
    data, network = small_data(room=100), LightHead(6, 3, 4)
    with caplog.at_level("INFO", "kdcache"):
        rows = torch.arange(8)
        Teacher(network, lambda b: network(b["x_t"]), data, {"x_t": (data.inputs["x"], rows)}, 4, ("logits", "map"))
    assert caplog.messages == ["teacher: its targets are not kept in memory (they take 0.0 GB); computed in each step"]


def expected_terms(options: Options) -> set[str]:
    return (
        {"L_c"}
        | ({"L_d"} if options.loss_d != "none" and options.network == "anticipation" else set())
        | ({"L_c_U"} if options.data in ("S+U",) and options.network == "anticipation" else set())
    )


ROWS = [(table.name, row) for table in tables("anticipation").values() for row in table.rows]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{t}: {r.name}" for t, r in ROWS])
def test_every_row_of_the_papers_tables_is_reachable(table, row):
    if row.quoted:
        assert not row.options
        return
    own = {name: value for name, value in row.options.items() if name not in SETTABLE}
    options = build(Options, {**own, "head": "light", "width": 4})
    roles = {one.name: one.role for one in anticipation.inputs(options)}
    data = small_data(classes={"verb": [0, 1, 2]}, roles=roles)
    options = dataclasses.replace(options, target="verb")
    stages = list(anticipation.stages(anticipation.resolve(options, data), data))
    last = stages[-1]
    assert set(last.losses(first_batch(last))) == expected_terms(options)
    distils = options.loss_d != "none" or options.data == "S+U" or options.soft_targets
    if options.network == "anticipation":
        assert [s.name for s in stages] == (["recognition", "anticipation"] if distils else ["anticipation"])
    else:
        assert [s.name for s in stages] == ["recognition"]
    side = "action" if options.network == "recognition" else "observed"
    assert [(one.name, one.role) for one in anticipation.inputs(options) if one.when == "always"] == [("x", side)]
    assert torch.equal(last.eval_sets["validation"].inputs["x"][1], data.splits["validation"].rows[side])
    assert anticipation.predictor(anticipation.resolve(options, data), data).role == side
    labelled = {"S": 12, "S+U": 12, "S+now": 24}[options.data] if options.data != "auto" else 12
    kept = 6 if options.label_fraction == 0.5 else labelled
    assert len(last.train) - last.train.num_unlabeled == kept
    if options.data == "S+U":
        assert last.train.num_unlabeled == 16 - kept


def test_presets_are_valid_and_the_papers_numbers_are_there():
    assert preset("anticipation", "epic") == {"target": "verb"}
    found = tables("anticipation")
    table3 = (28.4, 28.5, 30.3, 30.1, 29.8, 31.4, 31.8)
    assert [row.paper for row in found["table3"].rows] == [{"verb": v} for v in table3]
    assert found["table1"].rows[-1].paper == {"rgb": 70.2, "flow": 67.7, "both": 76.6}
    with pytest.raises(OptionError, match="did you mean 'epic'"):
        preset("anticipation", "epik")
    with pytest.raises(OptionError, match="did you mean 'anticipation'"):
        method("anticpation")


def test_augmentation_shows_both_segments_with_one_label():
    (stage,) = all_stages(small_data(), data="S+now", loss_d="none")
    batch = first_batch(stage, 24)
    assert torch.equal(batch["y"][:12], batch["y"][12:])
    assert torch.equal(stage.train.inputs["x"][1][12:], stage.train.inputs["x"][1][:12] + 1)


def test_without_pseudo_labels_u_enters_l_d_alone():
    stage = all_stages(small_data(), pseudo=False)[1]
    assert set(stage.losses(first_batch(stage))) == {"L_c", "L_d"}
    assert stage.train.num_unlabeled == 4


def test_first_weights_are_those_of_the_seed_whatever_the_loss():
    plain = all_stages(small_data(), data="S", loss_d="none")[-1].module.state_dict()
    recognition, distilled = all_stages(small_data())
    same = [torch.equal(v, plain[k]) for k, v in distilled.module.state_dict().items()]
    assert all(same)
    assert not torch.equal(recognition.module.classify.weight, distilled.module.classify.weight)
    other = all_stages(small_data(seed=1), data="S", loss_d="none")[-1].module.state_dict()
    assert not torch.equal(other["classify.weight"], plain["classify.weight"])


def test_student_can_start_from_the_trained_teacher():
    data = small_data()
    options = anticipation.resolve(Options(head="light", width=4, init="teacher", loss_d="none", data="S"), data)
    stages = anticipation.stages(options, data)
    recognition = next(stages)
    with torch.no_grad():
        recognition.module.classify.weight.fill_(0.25)
    stage = next(stages)
    assert (stage.module.classify.weight == 0.25).all()
    assert set(stage.losses(first_batch(stage))) == {"L_c"}


def test_label_fraction_is_class_balanced_nested_and_keeps_one_of_each():
    y = torch.tensor([0] * 40 + [1] * 10 + [2] + [UNLABELLED] * 5)
    half, tenth = keep_fraction(y, 0.5, 0), keep_fraction(y, 0.1, 0)
    assert [int((half == c).sum()) for c in range(3)] == [20, 5, 1]
    assert [int((tenth == c).sum()) for c in range(3)] == [4, 1, 1]
    assert ((tenth == UNLABELLED) | (tenth == half)).all()
    assert ((half == UNLABELLED) | (half == y)).all()
    assert not torch.equal(half, keep_fraction(y, 0.5, 1))
    assert torch.equal(keep_fraction(y, 1.0, 0), y)


def test_auto_options_are_resolved_and_logged(caplog):
    data = small_data()
    with caplog.at_level("INFO", "kdcache"):
        options = anticipation.resolve(Options(), data)
    assert (options.target, options.head, options.data, options.init) == ("verb", "light", "S+U", "random")
    assert caplog.messages == ["head: light (no GPU; the paper has i3d)", "data: S+U (4 unlabelled pairs)"]
    assert anticipation.resolve(Options(head="i3d"), small_data(unlabelled=0)).data == "S"
    assert anticipation.resolve(Options(head="i3d"), data).init == "checkpoint"
    with pytest.raises(OptionError, match="target=noun: no example has a noun; there is verb"):
        anticipation.resolve(Options(target="noun"), data)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_fraction": 0.0}, "label_fraction=0"),
        ({"head": "light", "layer": "mixed4f"}, "layer=mixed4f is for head=i3d"),
        ({"head": "light", "init": "checkpoint"}, "init=checkpoint is for head=i3d"),
        ({"data": "S+now"}, "set loss_d=none too"),
        ({"epochs": 0}, "epochs=0: give a positive number"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        Options(**options)


def test_light_head_pools_by_attention_and_exposes_its_map():
    torch.manual_seed(0)
    head = LightHead(6, 4, 8, dropout=0.0).eval()
    out = head(torch.rand(2, 6, 3, 5, 4))
    assert out["map"].shape == (2, 8, 3, 5, 4)
    torch.testing.assert_close(out["pooled"], out["map"].mean((2, 3, 4)))  # attention starts as the average
    with torch.no_grad():
        head.attend.weight.fill_(0.7)
    out = head(torch.rand(2, 6, 3, 5, 4))
    torch.testing.assert_close(out["weights"].sum((1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(out["pooled"], torch.einsum("bdlhw,blhw->bd", out["map"], out["weights"]))
    torch.testing.assert_close(out["logits"], head.classify(out["pooled"]))
    with torch.no_grad():
        head.attend.weight.fill_(50.0)
    assert torch.isfinite(head(torch.rand(2, 6, 3, 5, 4))["logits"]).all()


@pytest.mark.parametrize("shape", [(2, 4, 6, 2), (1, 3, 5, 4), (2, 1, 1, 1), (3, 8, 7, 7)])
def test_cells_are_averages_of_2x2x2_positions(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.empty(shape[0], *(-(-n // 2) for n in shape[1:]))
    for t, h, w in itertools.product(*map(range, expected.shape[1:])):
        expected[:, t, h, w] = x[:, 2 * t : 2 * t + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].mean((1, 2, 3))
    torch.testing.assert_close(cells(x), expected)
    with pytest.raises(OptionError, match=r"reads maps .* this stream has \[2048\]"):
        cells(torch.zeros(2048))


@pytest.mark.parametrize("shape", [(3, 8, 7, 7), (2, 1, 1, 1), (2, 3, 4, 5), (1, 2, 1, 6), (2, 1, 4, 3), (5, 4, 6, 2)])
def test_cells_are_the_same_to_the_bit_compiled_or_not(shape):
    x = torch.randn(shape)
    expected = cells(x.clone().requires_grad_())  # what trains goes through torch
    assert torch.equal(cells(x), expected.detach())
    transposed = x.permute(0, 3, 1, 2)
    assert torch.equal(cells(transposed), cells(transposed.clone().requires_grad_()).detach())
    half = x.half()
    assert torch.equal(cells(half), cells(half.float()))
    at_once = of_stack(cells)
    assert at_once is not None
    maps = torch.randn(3, *shape).half()
    assert torch.equal(at_once(maps), torch.stack([cells(one.float()) for one in maps]))


@pytest.mark.parametrize("native", [True, False])
def test_cells_take_every_number_of_half_precision(native, monkeypatch):
    if native and not cells_kernel.widens():
        pytest.skip("this processor has no instruction that widens half precision")
    monkeypatch.setattr(cells_kernel, "widens", lambda: native)
    x = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.float16)).view(2**16, 1, 1, 1)
    torch.testing.assert_close(cells(x), x.float(), rtol=0, atol=0, equal_nan=True)


def test_i3d_head_takes_every_weight_but_the_classifier_from_a_checkpoint():
    torch.manual_seed(0)
    source = I3DHead(7, "mixed4a", "mixed4f")
    checkpoint = dict(source.state_dict())
    head = I3DHead(3, "mixed4a", "mixed4f")
    initialise(head, checkpoint | {"Conv3d_1a_7x7.conv3d.weight": torch.zeros(1)})
    for name, value in head.state_dict().items():
        assert name in head.classifier or torch.equal(value, checkpoint[name])
    out = head.eval()(torch.rand(1, 480, 3, 3, 3))
    assert out["logits"].shape == (1, 3)
    assert out["map"].shape == (1, 832, 3, 3, 3)
    del checkpoint["Mixed_4b.b0.conv3d.weight"]
    with pytest.raises(WeightsError, match=r"lacks Mixed_4b.b0.conv3d.weight"):
        initialise(head, checkpoint)
