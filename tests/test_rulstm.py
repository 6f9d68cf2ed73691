"""RULSTM: its networks against the loops of their definition, its stages, its answers at several times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import past_cache
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

import kdcache
from kdcache import losses
from kdcache.errors import OptionError
from kdcache.methods import rulstm
from kdcache.methods.rulstm import RulstmOptions
from kdcache.methods.rulstm_networks import ModalityAttention, RollingUnrolling
from kdcache.metrics.anticipation import in_words, measure_times
from kdcache.metrics.topk import marginalise, measure
from kdcache.runs import presets
from kdcache.runs.fuse import fuse
from kdcache.runs.requirements import extraction_calls
from kdcache.runs.run import Run

QUICK = {"hidden": 24, "dropout": 0.2, "epochs": 8, "batch_size": 8, "lr": 0.1, "device": "cpu", "monitor": "top1"}
TIMES = [2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    table = past_cache.rows(train=32, validation=12, test_s1=4)
    return past_cache.write(tmp_path_factory.mktemp("cache"), table, {"rulstm/rgb": 8, "rulstm/flow": 6})


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Run:
    return kdcache.train("rulstm", shards, out=tmp_path_factory.mktemp("runs") / "rgb", stream="rulstm/rgb", **QUICK)


def lstm_step(layer: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step by the formulas: input, forget, cell and output gates."""
    gates = x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def by_definition(net: RollingUnrolling, x: Tensor, completion: bool) -> Tensor:
    """Logits [B, A, C], step by step as the paper and the authors' code have it."""
    B, S, _ = x.shape
    h = c = x.new_zeros(B, net.rolling.hidden_size)
    answers = []
    for t in range(S):
        h, c = lstm_step(net.rolling, x[:, t], h, c)
        if t < S - net.answers:
            continue
        # authors: inputs[t:] for completion, else inputs[t] repeated inputs.shape[0] - t + 1 times
        read = list(range(t, S)) if completion else [t] * (S - t + 1)
        u, v = h, c
        for index in read:
            u, v = lstm_step(net.unrolling, x[:, index], u, v)
        answers.append(net.classify(u))
    return torch.stack(answers, 1)


@pytest.mark.parametrize("completion", [False, True])
@pytest.mark.parametrize(("steps", "answers"), [(14, 8), (5, 5), (4, 1)])
def test_the_network_is_its_definition(steps, answers, completion):
    torch.manual_seed(0)
    net = RollingUnrolling(3, 7, 5, dropout=0.8, answers=answers).eval()
    x = torch.randn(2, steps, 3)
    found = net(x, completion=completion)
    torch.testing.assert_close(found["logits"], by_definition(net, x, completion), atol=1e-5, rtol=1e-5)
    assert found["context"].shape == (2, answers, 10)


def test_no_answer_knows_what_follows():
    torch.manual_seed(0)
    net = RollingUnrolling(3, 7, 5, dropout=0.0, answers=4).eval()
    x = torch.randn(1, 6, 3)
    before = net(x)["logits"]
    x[:, 4:] += 1  # the last two steps, those of the last two answers
    after = net(x)["logits"]
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:])


def test_modality_attention_weighs_the_branches():
    torch.manual_seed(0)
    branches = {"rgb": RollingUnrolling(3, 7, 4, 0.0, 2), "flow": RollingUnrolling(5, 7, 4, 0.0, 2)}
    net = ModalityAttention(branches, 4, 0.0).eval()
    assert [layer.out_features for layer in net.attend if isinstance(layer, nn.Linear)] == [4, 2, 2]  # 16 / 4, / 8
    inputs = {"rgb": torch.randn(3, 4, 3), "flow": torch.randn(3, 4, 5)}
    found = net(inputs)
    rgb, flow = (branches[name](inputs[name]) for name in branches)
    weights = torch.softmax(net.attend(torch.cat([rgb["context"], flow["context"]], -1)), -1)
    torch.testing.assert_close(found["weights"], weights)
    torch.testing.assert_close(found["weights"].sum(-1), torch.ones(3, 2))
    expected = rgb["logits"] * weights[..., :1] + flow["logits"] * weights[..., 1:]
    torch.testing.assert_close(found["logits"], expected)


def test_metrics_at_each_time():
    probs = np.zeros((3, 2, 7))
    probs[0, 0, 1] = probs[1, 0, 2] = probs[2, 0, 2] = 1  # 2 s ahead: one of three right
    probs[:, 1, 1] = 1  # 1 s ahead: all
    found = measure_times(probs, np.array([1, 1, 1]), [2.0, 1.0])
    # Of the zeros the higher classes come first: 1 is the sixth behind 2, 6, 5, 4, 3, and not among five.
    assert found == pytest.approx(
        {
            "top1@2": 100 / 3,
            "top5@2": 100 / 3,
            "mean_top5_recall@2": 100 / 3,
            "top1@1": 100.0,
            "top5@1": 100.0,
            "mean_top5_recall@1": 100.0,
        }
    )
    with pytest.raises(ValueError, match="not at 3 times"):
        measure_times(probs, np.array([1, 1, 1]), [2.0, 1.0, 0.5])


def test_metrics_on_one_line():
    assert in_words({"auc": 50.0, "acc10": 1.04}) == "auc 50.0  acc10 1.0"
    measured = {"top1@2": 1.0, "top5@2": 3.0, "top1@0.5": 2.0, "top5@0.5": 4.0}
    assert in_words(measured) == "top1@2…0.5 1.0 2.0  top5@2…0.5 3.0 4.0"
    assert in_words({"top1@1": 1.0}) == "top1@1 1.0"


def test_the_loss_is_the_mean_over_the_times():
    logits, y = torch.randn(3, 8, 5), torch.tensor([0, 4, 2])
    flat = cross_entropy(logits.flatten(0, 1), y[:, None].expand(-1, 8).flatten())
    torch.testing.assert_close(losses.l_cls(logits, y).mean(), flat)
    torch.testing.assert_close(flat, nll_loss(log_softmax(logits, -1).transpose(1, 2), y[:, None].expand(-1, 8)))


def test_a_run_learns_and_answers_at_every_time(run):
    metrics = run.metrics
    assert list(metrics["stages"]) == ["completion", "anticipation"]
    assert metrics["steps"] == 2 * 8 * 4  # epochs of 32 clips in batches of 8, of both stages
    assert metrics["selected_by"] == "validation"
    best = metrics["best@validation"]["validation"]
    assert set(best) == {"label", "verb", "noun"}
    assert [name for name in best["label"] if name.startswith("top1@")] == [f"top1@{tau:g}" for tau in TIMES]
    assert best["label"]["top1@0.25"] > 75  # of four classes
    table = run.predict("validation")
    assert table.index.names == ["clip_id", "tau_s"]
    assert table.index.get_level_values("tau_s")[:8].tolist() == TIMES
    assert len(table) == 12 * 8
    at_one = table.xs(1.0, level="tau_s").to_numpy()
    y = np.arange(12) % 4
    assert measure(at_one, y)["top1"] == pytest.approx(metrics["last"]["validation"]["label"]["top1@1"])
    verbs = marginalise(at_one, np.array([0, 0, 1, 2]), 3)
    expected = measure(verbs, np.array([0, 0, 1, 2])[y])["top1"]
    assert metrics["last"]["validation"]["verb"]["top1@1"] == pytest.approx(expected)
    assert run.predict("test_s1").shape == (4 * 8, 4)


def test_what_is_written_holds_the_answers_of_the_main_time(run):
    table = pd.read_csv(run.path / "predictions.csv")
    assert table.columns.tolist() == ["clip_id", "tau_s", "split", "label", "0", "1", "2", "3"]
    assert len(table) == 12
    assert set(table["tau_s"]) == {1.0}
    np.testing.assert_allclose(
        table[["0", "1", "2", "3"]], run.predict("validation").xs(1.0, level="tau_s").to_numpy(), atol=1e-5
    )
    assert json.loads((run.path / "anticipation" / "summary.json").read_text())["monitor"] == "top1@1"


def test_the_second_stage_begins_with_the_best_weights_of_the_first(shards, tmp_path, monkeypatch):
    whole, began = rulstm.stages, {}

    def watched(options, data):
        for stage in whole(options, data):
            began[stage.name] = {name: value.clone() for name, value in stage.module.state_dict().items()}
            yield stage

    monkeypatch.setattr(rulstm, "stages", watched)
    run = kdcache.train("rulstm", shards, out=tmp_path / "run", stream="rulstm/rgb", **QUICK | {"epochs": 2})
    best = load_file(run.path / "completion" / "best.safetensors")
    assert all(torch.equal(began["anticipation"][name], best[name]) for name in best)
    assert not any(torch.equal(began["completion"][name], best[name]) for name in best)


def test_without_completion_there_is_one_stage(shards, tmp_path):
    quick = QUICK | {"epochs": 2, "completion": False}
    run = kdcache.train("rulstm", shards, out=tmp_path / "run", stream="rulstm/flow", **quick)
    assert list(run.metrics["stages"]) == ["anticipation"]
    assert run.metrics["steps"] == 2 * 4


def test_modalities_are_trained_one_by_one_and_then_fused(shards, tmp_path):
    quick = QUICK | {"epochs": 3, "modalities": ("rulstm/rgb", "rulstm/flow")}
    run = kdcache.train("rulstm", shards, out=tmp_path / "run", **quick)
    names = ["rgb-completion", "rgb", "flow-completion", "flow", "fusion"]
    assert list(run.metrics["stages"]) == names
    assert run.metrics["steps"] == 5 * 3 * 4
    assert run.metrics["best@validation"]["validation"]["label"]["top1@0.25"] > 50
    again = Run(run.path).evaluate()
    assert again["last"] == run.metrics["last"]


def test_runs_are_fused_time_by_time(run, shards, tmp_path):
    quick = QUICK | {"epochs": 2, "completion": False}
    other = kdcache.train("rulstm", shards, out=tmp_path / "flow", stream="rulstm/flow", **quick)
    found = fuse([run, other])["validation"]
    mean = (run.predict("validation") + other.predict("validation")) / 2
    assert found["top1@0.5"] == pytest.approx(
        measure(mean.xs(0.5, level="tau_s").to_numpy(), np.arange(12) % 4)["top1"]
    )
    shorter = past_cache.write(tmp_path / "short", past_cache.rows(train=8, validation=12), {"rulstm/rgb": 8}, steps=4)
    few = kdcache.train(
        "rulstm", shorter, out=tmp_path / "few", **quick, encoding_steps=0, anticipation_steps=4, patience=0
    )
    with pytest.raises(OptionError, match=r"other levels or times \(1, 0.75, 0.5, 0.25\)"):
        fuse([run, few])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"at_s": 0.9}, "at_s=0.9: the network answers 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25 s before"),
        ({"modalities": ("rulstm/rgb",)}, "name two streams or more"),
        ({"modalities": ("a/rgb", "b/rgb")}, "differ in their last part"),
        ({"completion": False, "completion_epochs": 3}, "means nothing with completion=false"),
        ({"dropout": 1.0}, "give a share from 0 to below 1"),
        ({"encoding_steps": -1}, "must not be negative"),
        ({"anticipation_steps": 0}, "give a positive number"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(OptionError, match=sentence):
        RulstmOptions(**options)


def test_clips_of_other_steps_are_refused(shards, tmp_path, caplog):
    with pytest.raises(OptionError, match=r"have 14 steps and encoding_steps=5 \+ anticipation_steps=8 are 13"):
        kdcache.train("rulstm", shards, out=tmp_path / "a", stream="rulstm/rgb", **QUICK, encoding_steps=5)
    with pytest.raises(OptionError, match=r"imported with --step 0.25, and step_s=0.5: set step_s=0.25"):
        kdcache.train("rulstm", shards, out=tmp_path / "b", stream="rulstm/rgb", **QUICK, step_s=0.5, at_s=1.0)
    late = past_cache.write(tmp_path / "late", past_cache.rows(train=8, validation=4), {"rulstm/rgb": 8}, lag=0.0)
    kdcache.train("rulstm", late, out=tmp_path / "c", **QUICK | {"epochs": 1, "completion": False})
    assert "import them with --lag 0.25" in caplog.text
    assert not (tmp_path / "a").exists()


def test_presets_and_what_is_to_be_imported():
    assert presets.preset("rulstm", "ek100") == {"monitor": "mean_top5_recall"}
    assert [row.options for row in presets.tables("rulstm")["stages"].rows] == [{"completion": False}, {}]
    with pytest.raises(OptionError, match="reads vectors that were computed elsewhere as its input x: import them"):
        extraction_calls("rulstm")
