"""The Triton kernels of TV-L1 without a GPU: compiled for one ahead of time, and run by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

FLOATS, NUMBERS, WHOLE, REAL = "*fp32", "*i32", "i32", "fp32"
TILE = {"TILE_Y": 8, "TILE_X": 64}
SEVERAL = {"STEPS": 4, "TILE_Y": 32, "TILE_X": 64}
KINDS = {
    FLOATS: "uv dual data changes first texture",
    NUMBERS: "pairs moving turns",
    REAL: "threshold limit theta pace",
}
KERNELS = {
    "iterate": SEVERAL,
    "judge": {"STEPS": 4, "TILES": 128},
    "turn_flow": {},
    "smooth": {"SIZE": 5, **TILE},
    "linearise": TILE,
}
ALIGNED = "uv dual data plane pitch"  # multiples of 16, see kdcache.motion.tv_l1.triton_level


@pytest.mark.parametrize(("name", "target"), [*((name, 90) for name in KERNELS), ("iterate", 80), ("iterate", 120)])
def test_kernels_compile_for_a_gpu_ahead_of_time(name, target, tmp_path, monkeypatch):
    """To machine code of an H100 (sm_90) and others; products and sums are rounded one by one, except where named."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kdcache.motion.tv_l1 import triton_iteration, triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    whose = triton_iteration if name in ("iterate", "judge") else triton_kernels
    kernel, constants = getattr(whose, name), KERNELS[name]
    kinds = {argument: kind for kind, arguments in KINDS.items() for argument in arguments.split()}
    signature = {a: "constexpr" if a in constants else kinds.get(a, WHOLE) for a in kernel.arg_names}
    at = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    aligned = [kernel.arg_names.index(argument) for argument in ALIGNED.split() if argument in kernel.arg_names]
    source = ASTSource(kernel, signature, at, {(n,): [["tt.divisibility", 16]] for n in aligned})
    options = {**triton_kernels.ROUNDED, **({"num_warps": 16} if name == "iterate" else {})}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    ptx = compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 1000
    assert ("fma.rn.f32" in ptx) == (name in ("linearise", "iterate"))  # OpenCV's bicubic sums; rounded quotients
    if name == "iterate":
        assert triton_iteration.TILE == {**SEVERAL, "num_warps": 16}
        assert ptx.count("st.global.v4.b32") == 6  # rows are aligned: four pixels at once
        assert ptx.count("ld.global.v4.b32") == 9
        assert "div.rn" not in ptx  # 24 × slower, and with branches


INTERPRETED = """
import json
from contextlib import contextmanager
import numpy as np
import torch
import torch.nn.functional as F
from kdcache.motion.tv_l1 import torch_engine, triton_iteration, triton_level
from kdcache.motion.tv_l1.params import TVL1Params

coarse = torch.from_numpy(np.random.default_rng(0).random((3, 1, 6, 12), np.float32)) * 255
image = F.interpolate(coarse, size=(13, 72), mode="bicubic")[:, 0]
first, second = image[:, 1:10, 1:67], image[:, 2:11, 3:69].clone()
second[0] = first[0]  # does not move: settled after one iteration
second[1] = first[1] * 1.01  # settled after the first outer iteration
CPU = torch.device("cpu")
triton_level.room = lambda count: count + 1  # so that the list is filled up
triton_iteration.OWN_Y, triton_iteration.TILE = 8, {**triton_iteration.TILE, "TILE_Y": 16}
seen, replays = [], []

def capture(launch):
    replays.append(0)
    def replay():
        replays[-1] += 1
        launch()
    return replay

@contextmanager
def fused(count, sizes, params, device):
    with triton_level.workspace(count, sizes, params, device) as space:
        def level(*tensors):
            one = space.level(*tensors)
            listed = one._list
            one._list = lambda pairs: (listed(pairs), seen.append([len(pairs), one.listed]))
            return one
        yield level

def flow(pairs, params):
    seen.clear()
    rows = 9 if params.median_filtering == 5 else 8  # two rows of tiles, and one
    with torch.inference_mode():
        return torch_engine._solve(first[pairs, :rows], second[pairs, :rows], None, params)

plain, found = torch_engine._levels, {}
for size in (5, 3):
    params = TVL1Params(nscales=1, warps=1, outer_iterations=2, inner_iterations=3, median_filtering=size, epsilon=0.04)
    torch_engine._levels = plain
    expected = flow([0, 1, 2], params)
    torch_engine._levels = fused
    triton_level.forget()
    flows = flow([0, 1, 2], params)
    found[size] = {"lists": [*seen], "apart": float((flows - expected).abs().max())}
    found[size]["moved"] = flows.abs().amax((1, 2, 3)).tolist()

space = triton_level._kept[CPU]
space._graphs._capture = capture
fewer = flow([2, 1], params)
found["fewer"] = {
    "same memory": triton_level._kept[CPU] is space,
    "same flow": torch.equal(fewer, flows[[2, 1]]),
    "lists": [*seen],
    "replays": [*replays],
}

triton_level.forget()
one, other = image[:1, 1:9, 1:51], image[:1, 2:10, 2:52]
share = torch.tensor([0.005, 0.01, 0.02, 0.028, 0.036, 0.0436, 0.1])[:, None, None]
one, other = one.repeat(7, 1, 1), one + (other - one) * share
texture, still = torch.stack([other, *torch_engine.gradients(other)]), torch.zeros_like(one)
params = TVL1Params(nscales=1, warps=1, outer_iterations=1, inner_iterations=6, median_filtering=1, epsilon=0.02)

def steps_of(level):
    level.linearise()
    flows, made = [torch.stack(level.flow())], torch.zeros(len(one), dtype=torch.int)
    for _ in range(6):
        made += level.active
        level.step()
        flows.append(torch.stack(level.flow()))
    return flows, made

with torch.inference_mode():
    flows, made = steps_of(torch_engine.PlainLevel(one, texture, still, still, params))
    with triton_level.workspace(7, [one.shape[1:]], params, CPU) as space:
        level = space.level(0, one, texture, still, still)
        level.linearise()
        level.advance()
        own = torch.stack(level.flow())
        found["stops"] = {
            "plain": made.tolist(),
            "apart": float((own - flows[6]).abs().max()),
            "a step": [float((flows[n] - flows[n - 1])[:, k].abs().max()) for k, n in enumerate(made.tolist())],
            "moving": space.moving[:7].tolist(),
        }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """What the script above finds, by the interpreter, which has to be chosen before Triton is loaded."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", ["5", "3"])
def test_kernels_give_what_plain_operations_give(interpreted, size):
    """Four tiles, or two, of three pairs, of which one goes on after the first outer iteration, alone."""
    found = interpreted[size]
    assert found["apart"] < 1e-5
    assert found["lists"] == [[3, 4], [1, 2]]
    assert found["moved"][0] == 0
    assert min(found["moved"][1:]) > 0.1


def test_a_pair_does_not_depend_on_its_batch_nor_on_what_was_in_its_memory(interpreted):
    """Two pairs in the memory of three; launches that were made before are replayed from the second time on."""
    found = interpreted["fewer"]
    assert found["same memory"]
    assert found["same flow"]
    assert found["lists"] == [[2, 3], [1, 2]]
    assert found["replays"] == [1]  # for one pair, as in the batch before; for two pairs it was the first time


def test_a_pair_stops_after_the_iteration_of_plain_operations(interpreted):
    """Launches of four and two iterations: a stop before a launch's last is made again, though the next is shorter."""
    found = interpreted["stops"]
    assert found["plain"] == [1, 2, 3, 4, 5, 6, 6]
    assert found["apart"] < 1e-6 < 0.01 < min(found["a step"])
    assert [left > 0 for left in found["moving"]] == [False] * 6 + [True]


def test_launches_are_for_few_numbers_of_pairs():
    from kdcache.motion.tv_l1 import torch_engine
    from kdcache.motion.tv_l1.triton_level import room

    numbers = [room(n) for n in range(1, 200)]
    assert all(n <= got <= 1.5 * n for n, got in enumerate(numbers, 1))
    assert room(torch_engine._PAIRS) <= 65535  # what one dimension of a CUDA grid holds
    assert sorted(set(numbers)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
