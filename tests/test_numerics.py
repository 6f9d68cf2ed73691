"""Precision is what the recipe and the run say, whatever a process has switched on, and all is put back."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdcache import backbones, numerics, runtime
from kdcache.backbones.freeze import Frozen
from kdcache.errors import OptionError
from kdcache.methods.heads import LightHead
from kdcache.methods.recurrent import Recurrent
from kdcache.methods.rulstm_networks import RollingUnrolling
from kdcache.methods.vector_heads import attention_pool
from kdcache.numerics import WORKSPACE, full_precision, reproducible
from kdcache.runs.online.unfolding import Unfolding
from kdcache.runs.session import Session

CPU = torch.device("cpu")


def switches() -> dict[object, object]:
    """Every switch of both interfaces, each as it was set itself."""
    found: dict[object, object] = {}
    for name, ask in (("matmul", torch.get_float32_matmul_precision), ("cudnn", torch._C._get_cudnn_allow_tf32)):
        with contextlib.suppress(RuntimeError):  # the two interfaces contradict each other
            found[name] = ask()
    with contextlib.ExitStack() as after:
        for key in numerics._DEFAULTS:
            found[key] = numerics._get(key)
            after.callback(numerics._set, key, found[key])
            numerics._set(key, "none")
        found |= {key: numerics._get(key) for key in numerics._OPERATIONS}
    matmul = torch.backends.cuda.matmul
    for dtype in ("bf16", "fp16"):
        name = f"allow_{dtype}_reduced_precision_reduction"
        found[name] = (getattr(matmul, name), getattr(matmul, f"{name}_split_k"))
    found["fp16 accumulation"] = matmul.allow_fp16_accumulation
    return found


@pytest.fixture(autouse=True)
def _as_found():
    before = switches()
    with full_precision():  # what a test switches is put back
        for key in (*numerics._DEFAULTS, *numerics._OPERATIONS):
            numerics._set(key, before[key])
        if "matmul" in before:
            torch.set_float32_matmul_precision(before["matmul"])
        if "cudnn" in before:
            torch._C._set_cudnn_allow_tf32(before["cudnn"])
        for key in (*numerics._DEFAULTS, *numerics._OPERATIONS):
            numerics._set(key, before[key])
        yield
    assert switches() == before


def older_matmul():
    torch.set_float32_matmul_precision("high")


def older_cpu():
    torch.set_float32_matmul_precision("medium")


def older_switches():
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = False


def newer_for_all():
    torch.backends.fp32_precision = "tf32"


def newer_for_cudnn():
    torch.backends.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def newer_for_matmul():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def sums():
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.matmul.allow_fp16_accumulation = True


@pytest.mark.parametrize(
    "switch",
    [
        lambda: None,
        older_matmul,
        older_cpu,
        older_switches,
        newer_for_all,
        newer_for_cudnn,
        newer_for_matmul,
        sums,
    ],
)
def test_whatever_is_switched_on_is_off_inside_and_back_afterwards(switch):
    matmul = torch.backends.cuda.matmul
    accumulation = matmul.allow_fp16_accumulation
    reduction = matmul.allow_bf16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction_split_k
    try:
        switch()
        before = switches()
        for _ in range(2):
            with full_precision():
                inside = switches()
        assert {inside[key] for key in numerics._OPERATIONS} == {"ieee"}
        assert {inside[key] for key in numerics._DEFAULTS} == {"none"}
        assert (inside.get("matmul", "highest"), inside.get("cudnn", False)) == ("highest", False)
        assert not inside["allow_bf16_reduced_precision_reduction"][0]
        assert not inside["fp16 accumulation"]
        assert switches() == before
    finally:
        matmul.allow_fp16_accumulation = accumulation
        matmul.allow_bf16_reduced_precision_reduction = reduction


def test_it_is_put_back_after_an_error():
    newer_for_all()
    before = switches()
    with pytest.raises(ValueError, match="inside"), full_precision():
        raise ValueError("inside")
    assert switches() == before


def test_extraction_computes_in_full_precision(monkeypatch):
    """In the forward of a frozen network, where a user has switched TF32 on for the whole process."""
    seen = []
    net = backbones.build("vacnn-small", weights="random:0")
    frozen = Frozen(net, net.resolve("pool"))
    monkeypatch.setattr(Frozen, "_features", lambda self, layers, clips: seen.append(switches()) or [torch.zeros(1)])
    newer_for_all()
    frozen(torch.zeros((1, 1, 8, 8, 3), dtype=torch.uint8))
    assert {seen[0][key] for key in numerics._OPERATIONS} == {"ieee"}


def test_answers_while_a_clip_unfolds_are_in_full_precision():
    seen = []
    step = lambda x, state: (seen.append(switches()) or torch.zeros(1, 2), None)  # noqa: E731
    run = object.__new__(Unfolding)
    run._data = SimpleNamespace(
        inputs={"x": torch.zeros(3, 2)}, device=torch.device("cpu"), autocast=contextlib.nullcontext
    )
    run._network, run._classes, run._names = SimpleNamespace(step=step), (0, 1), ("a", "b")
    newer_for_all()
    feature = SimpleNamespace(features=torch.zeros(4).numpy(), seconds=1.0)
    assert len(list(run._steps([iter([feature] * 3)]))) == 3
    assert {one[key] for one in seen for key in numerics._OPERATIONS} == {"ieee"}


def test_stages_of_deterministic_runs_on_a_gpu_are_shared_among_themselves(tmp_path):
    """Others took other algorithms, whose last bits differ; a CPU has but one kind."""
    stage = SimpleNamespace(name="t", share_key="k", share_inputs=(), seed=0, train=SimpleNamespace(inputs=()))
    kept = {}
    try:
        for name in ("cpu", "cuda"):
            for deterministic in (False, True):
                torch.use_deterministic_algorithms(deterministic)
                opened = SimpleNamespace(
                    data=SimpleNamespace(device=torch.device(name)), resolved={"device": name}, input_recipes={}
                )
                kept[name, deterministic] = Session(tmp_path).kept(stage, opened, 1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert kept["cpu", False] == kept["cpu", True]
    assert len(set(kept.values())) == 3


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name", ["cpu", "cuda"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_determinism_is_switched_on_inside_only(before, name, deterministic, monkeypatch):
    """Afterwards everything is as it was found: ``warn_only``, cuDNN's benchmark, cuBLAS's workspace."""
    monkeypatch.delenv(WORKSPACE, raising=False)

    def settings() -> tuple[object, ...]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        enabled = torch.are_deterministic_algorithms_enabled()
        return enabled, warn_only, torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)

    found = settings()
    try:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = True
        with reproducible(torch.device(name), deterministic):
            on = deterministic or name == "cpu"
            assert settings() == (on, False, not on, ":4096:8" if on and name == "cuda" else None)
            assert switches()["cuda", "conv"] == "ieee"
        assert settings() == (*before, True, None)
    finally:
        torch.use_deterministic_algorithms(found[0], warn_only=found[1])
        torch.backends.cudnn.benchmark = found[2]


def test_an_operation_without_a_deterministic_algorithm_is_named():
    words = "max_pool3d_with_indices_backward_cuda does not have a deterministic implementation, but you set 'torch.use"
    with pytest.raises(
        OptionError, match="max_pool3d_with_indices_backward_cuda has no deterministic algorithm on cuda"
    ):
        with reproducible(torch.device("cuda:0"), deterministic=True):
            raise RuntimeError(words)


def test_bf16_is_asked_of_the_device_of_the_run(monkeypatch):
    """Not of the current one, which is the first of the machine."""
    current = ["cuda:0"]

    class Entered(contextlib.AbstractContextManager):
        def __init__(self, device):
            self.device = str(device)

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Entered)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == "cuda:1")
    assert runtime.resolve_precision("auto", torch.device("cuda:1")) == "bf16"
    assert runtime.resolve_precision("auto", torch.device("cuda:0")) == "fp16"
    assert current == ["cuda:0"]


# ---------------------------------------------------------------------------
# inside automatic mixed precision
# ---------------------------------------------------------------------------


def watched(layer: nn.Module) -> list[tuple[bool, torch.dtype]]:
    """Whether autocast was on, and of what dtype the input was, in each forward of a layer."""
    seen: list[tuple[bool, torch.dtype]] = []
    layer.register_forward_pre_hook(lambda m, args: seen.append((torch.is_autocast_enabled("cpu"), args[0].dtype)))
    return seen


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent_layers_run_in_float32(cell):
    """cuDNN's would take fp16, whatever the precision of the run, without the scaling of the loss that it needs."""
    torch.manual_seed(0)
    network = Recurrent(6, 3, 5, cell).eval()
    network.input = nn.Linear(6, 6)
    seen, x = watched(network.layer), torch.randn(2, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(x)
        logits, state = network.step(x[:, 0])
        network.step(x[:, 1], state)
    assert seen == [(False, torch.float32)] * 3
    assert outputs["latents"].dtype == torch.float32
    torch.testing.assert_close(logits, outputs["logits"][:, 0], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(outputs["latents"], network(x)["latents"], rtol=2e-2, atol=2e-2)


def test_rolling_and_unrolling_run_in_float32():
    network = RollingUnrolling(6, 3, 5, 0.0, answers=3).eval()
    seen = [watched(network.rolling), watched(network.unrolling)]
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 5, 6))
    assert {each for layer in seen for each in layer} == {(False, torch.float32)}
    assert len(seen[0]) == 4  # two steps at once, then each of the last three


def test_heads_pool_in_float32():
    torch.manual_seed(0)
    head, x = LightHead(6, 3, width=5).eval(), torch.rand(2, 6, 2, 3, 3)
    nn.init.normal_(head.attend.weight)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(x)
    assert outputs["pooled"].dtype == torch.float32
    positions = outputs["map"].float().flatten(2)
    exact = (positions * outputs["weights"].flatten(1)[:, None]).sum(2)
    torch.testing.assert_close(outputs["pooled"], exact, rtol=1e-5, atol=1e-6)


def test_sequences_are_pooled_in_float32():
    torch.manual_seed(0)
    x, scores, own = torch.randn(2, 5, 6), torch.randn(2, 5), torch.ones(2, 5, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        pooled, weights = attention_pool(x, scores, own)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, (x * weights[:, :, None]).sum(1), rtol=1e-5, atol=1e-6)
