"""Ego-RNN and the two-stream baselines as methods: what each stage trains and what answers."""

from __future__ import annotations

import pytest
import torch
from egocentric_cases import check_stage, data_for, options_of
from torch.nn.functional import cross_entropy

from kdcache.data.loader import feed, in_order
from kdcache.errors import OptionError
from kdcache.methods import egornn
from kdcache.methods.schedule import Schedule
from kdcache.runs import presets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({"network": "rgb", "attention": False}, ["rgb-1", "rgb-2"]),
        ({"network": "joint", "init": None}, ["rgb-1", "rgb-2", "flow", "joint"]),
        ({"network": "average", "init": None}, ["rgb-1", "rgb-2", "flow", "average"]),
        ({"network": "tsn"}, ["frame", "flow", "average"]),
        ({"network": "flow"}, ["flow"]),
    ],
)
def test_what_each_stage_trains_and_what_answers(given, stages):
    start = {} if given["network"] in ("rgb", "joint", "average") else {"init": "random:0"}
    options = options_of(egornn.Options, snippets=2, **{**start, **given})
    data = data_for(egornn.inputs(options))
    options = egornn.resolve(options, data)
    made = {}
    for stage in egornn.stages(options, data):
        made[stage.name] = stage
        if stage.optimizer is not None:
            check_stage(stage, data)
    assert list(made) == stages
    answer = egornn.predictor(options, data)
    assert answer.stage == stages[-1]
    assert set(answer.inputs) == {one.name for one in egornn.inputs(options) if one.when == "always"}
    answer.module.load_state_dict(made[stages[-1]].module.state_dict())
    answer.module.eval()
    source = made[stages[-1]].eval_sets["test"]
    (batch,) = feed(source, in_order(source, 8), data.device)
    with torch.inference_mode():
        scores = made[stages[-1]].module.eval() and answer.predict(batch)
        torch.testing.assert_close(scores, made[stages[-1]].predict(batch))


def test_two_stream_is_trained_on_one_snippet_and_tsn_on_all():
    torch.manual_seed(0)
    losses = {}
    for network in ("two-stream", "tsn"):
        options = options_of(egornn.Options, network=network, snippets=3, init="random:0", snippet_dropout=0.0)
        data = data_for(egornn.inputs(options))
        options = egornn.resolve(options, data)
        stage = next(egornn.stages(options, data))
        stage.module.eval()
        (batch,) = feed(stage.train, in_order(stage.train, 8), data.device)
        with torch.no_grad():
            losses[network] = [float(stage.losses(batch)["CE"]) for _ in range(8)]
            expected = float(cross_entropy(stage.predict(batch), batch["y"]))
    assert len(set(losses["two-stream"])) > 1
    assert losses["tsn"] == pytest.approx([expected] * 8)


def test_misuse():
    with pytest.raises(OptionError, match="attention=false is for network=rgb or average, not joint"):
        egornn.Options(attention=False)
    options = options_of(egornn.Options, network="rgb", init="random:1")
    with pytest.raises(OptionError, match="branches go on from the network that made maps; leave init out"):
        egornn.resolve(options, data_for(egornn.inputs(options)))


def test_rows_can_be_run():
    assert len(presets.tables("egornn")["networks"].rows) == 7


def test_schedules():
    default = "adam lr=1e-3 epochs=300 milestones=25/75/150 weight_decay=4e-5 eps=1e-4"
    schedule = Schedule.read("rgb_1", "epochs=30 milestones=20", default)
    assert (schedule.optimizer, schedule.lr, schedule.epochs, schedule.milestones) == ("adam", 1e-3, 30, (20,))
    assert (schedule.weight_decay, schedule.eps, schedule.batch_size) == (4e-5, 1e-4, 32)
    tenth = Schedule.read("rgb_1", default, default).scaled(0.1, 2.0)
    assert (tenth.epochs, tenth.milestones, tenth.lr) == (30, (2, 8, 15), 2e-3)
    falling = Schedule.read("joint", "", "sgd lr=1e-2 epochs=250 decay=0.99").scaled(0.1, 1.0)
    assert falling.decay**falling.epochs == pytest.approx(0.99**250)
    for text, message in (
        ("rmsprop", "'rmsprop' is no optimiser: write adam or sgd"),
        ("milestones=a", "milestones=a is not whole numbers such as 25/75"),
        ("lr=-1", "lr=-1.0: give a positive number"),
        ("milestones=2 decay=0.5", "give one of them"),
    ):
        with pytest.raises(OptionError, match=message):
            Schedule.read("rgb_1", text, default)
    parameter = torch.nn.Parameter(torch.ones(1))
    stage = falling.stage("s", torch.nn.Linear(1, 1), None, None, {}, [parameter], None, slower={0.01: []})
    for _ in range(2):
        stage.optimizer.step()
        stage.scheduler.step()
    assert stage.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * falling.decay**2)
