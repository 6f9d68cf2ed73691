"""Training on a GPU: its numbers are those of the CPU, it goes on after an interruption, processes share its memory.

Where a test has a twin on the CPU, the twin runs the same code, so that it is right before it meets a GPU.
"""

from __future__ import annotations

import clips_cache
import numpy as np
import pairs_cache
import pytest
import torch
from gpu_cases import ON_EACH
from make_videos import write_moving_squares
from torch.nn import functional as F

import kdcache
from kdcache.engine import checkpoint, loop
from kdcache.methods.recurrent import Recurrent
from kdcache.runs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

EARLY = {"epochs": 3, "milestones": (2,), "batch_size": 12, "hidden": 16, "teacher_hidden": 8, "lr": 0.1}
PAIRS = {"epochs": 2, "milestones": (1,), "batch_size": 16, "head": "light", "width": 16}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return clips_cache.cache(tmp_path_factory.mktemp("clips"), views=2, train=36, validation=12, test=12)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pairs_cache.cache(tmp_path_factory.mktemp("pairs"), 40, 12, views=2)


def losses(run) -> np.ndarray:
    """Each stage's training loss terms by epoch."""
    return np.nan_to_num(run.history.filter(like="L_").to_numpy(dtype=float))


@ON_EACH
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gradients_of_recurrent_networks_in_bf16_are_those_of_float32(cell, device):
    torch.manual_seed(0)
    network = Recurrent(64, 10, 128, cell).to(device)
    x, y = torch.randn(32, 10, 64, device=device), torch.randint(10, (32,), device=device)

    def gradients(enabled: bool) -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            outputs = network(x)
            loss = F.cross_entropy(outputs["logits"].flatten(0, 1).float(), y.repeat_interleave(10)) * 1e-5
        assert outputs["latents"].dtype == torch.float32
        loss.backward()
        return [p.grad.clone() for p in network.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_losses_are_those_of_the_cpu(clips, tmp_path, precision):
    expected = losses(train("early", clips, out=tmp_path / "cpu", device="cpu", dropout=0.0, **EARLY))
    found = losses(
        train("early", clips, out=tmp_path / "gpu", device="cuda", precision=precision, dropout=0.0, **EARLY)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3 if precision == "fp32" else 0.1, atol=1e-3)


@ON_EACH
def test_streams_and_targets_in_memory_or_read_in_each_step_give_the_same(pairs, tmp_path, device):
    given = PAIRS | {"device": device, "precision": "fp32", "dropout": 0.0}
    held, read = (train("anticipation", pairs, out=tmp_path / str(f), memory_fraction=f, **given) for f in (0.6, 0.0))
    assert held.resolved["budget"] > read.resolved["budget"] == 0
    np.testing.assert_allclose(losses(held), losses(read), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_fraction", [0.6, 0.0])
def test_heads_of_i3d_train(pairs, tmp_path, memory_fraction):
    given = PAIRS | {"head": "i3d", "init": "random", "epochs": 1, "device": "cuda", "milestones": ()}
    del given["width"]
    run = train("anticipation", pairs, out=tmp_path / "run", memory_fraction=memory_fraction, **given)
    assert np.isfinite(losses(run)).all()
    assert run.metrics["last"]


class Crash(RuntimeError):
    """An interruption."""


@ON_EACH
@pytest.mark.parametrize("gpus", [1, 8])
def test_an_interrupted_training_goes_on(clips, tmp_path, monkeypatch, device, gpus):
    """Also one whose checkpoint has the generators of eight GPUs, as version 0.1 wrote them."""
    given = EARLY | {"device": device, "save_every": 0.0, "deterministic": True}
    whole = train("early", clips, out=tmp_path / "whole", **given)
    step, taken = loop._step, []

    def stop_at_the_ninth(run, batch):
        taken.append(step(run, batch))
        if len(taken) == 9:
            raise Crash

    monkeypatch.setattr(loop, "_step", stop_at_the_ninth)
    with pytest.raises(Crash):
        train("early", clips, out=tmp_path / "run", **given)
    monkeypatch.undo()
    (path,) = (tmp_path / "run").glob(f"*/{checkpoint.STATE}")
    state = torch.load(path)
    assert len(state["cuda_rng"]) == (device == "cuda")
    if gpus > 1 and device == "cuda":
        torch.save(state | {"cuda_rng": state["cuda_rng"] * gpus}, path)
    resumed = train("early", clips, out=tmp_path / "run", **given)
    np.testing.assert_array_equal(losses(resumed), losses(whole))


@ON_EACH
def test_steps_give_what_the_whole_sequence_gives(clips, tmp_path, device):
    run = train("early", clips, out=tmp_path / "run", device=device, **EARLY)
    expected = run.predict("test")
    names = expected.index.get_level_values("clip_id").unique().tolist()
    data = run.training_data.data
    rows = torch.tensor([run.training_data.examples.clip_ids.index(name) for name in names])
    stream = data.inputs["x"]
    x = stream.to_device(stream.fetch(rows, torch.zeros_like(rows), rows))
    network, state, answers = run.network(), None, []
    for n in range(x.shape[1]):
        with torch.no_grad(), data.autocast():
            logits, state = network.step(x[:, n], state)
        answers.append(torch.softmax(logits.float(), -1).cpu().numpy())
    found = np.stack(answers, 1).reshape(len(expected), -1)
    np.testing.assert_allclose(found, expected.to_numpy(), atol=1e-2 if device == "cuda" else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "clips_a_batch"), [("tsm", 2), ("resnet34", 2)])
def test_backbones_are_fitted(tmp_path, name, clips_a_batch):
    write_moving_squares(tmp_path)
    given = {"epochs": 1, "batch_size": clips_a_batch, "init": "random:0", "device": "cuda", "augmentations": 2}
    fitted = kdcache.fit(name, tmp_path / "clips.csv", tmp_path, tmp_path / "fit", validation=0.0, **given)
    assert np.isfinite(losses(fitted.run)).all()


@pytest.mark.gpu
def test_two_processes_compare_rows_on_one_gpu(clips, tmp_path):
    rows = {"neither": {"alpha": 0, "beta": 0}, "both": {}}
    given = {"seeds": 1, "tune": 0, "workers": 2, "out": tmp_path / "rows", "device": "cuda"}
    kdcache.ablate("early", shards=clips, rows=rows, **given, **EARLY)
    assert (tmp_path / "rows" / "results.csv").exists() or list((tmp_path / "rows").glob("*.csv"))


@pytest.mark.gpu
def test_deterministic_runs_repeat_to_the_bit(pairs, tmp_path):
    given = PAIRS | {"device": "cuda", "deterministic": True}
    one, other = (train("anticipation", pairs, out=tmp_path / name, **given) for name in ("one", "other"))
    np.testing.assert_array_equal(losses(one), losses(other))
    assert (one.path / "predictions.csv").read_bytes() == (other.path / "predictions.csv").read_bytes()
