"""The Triton kernels of TV-L1 without a GPU: compiled for one ahead of time, and run by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

FLOATS, WHOLE, NUMBERS = "*fp32", "i32", "fp32"
TILE = {"TILE_Y": 8, "TILE_X": 64}
KERNELS = {
    "_iterate": (
        {FLOATS: "state out data changes new_changes", WHOLE: "plane height width tiles"}
        | {NUMBERS: "threshold limit theta pace"},
        {"TILES": 64, **TILE},
    ),
    "_smooth": (
        {FLOATS: "state out changes", WHOLE: "plane height width tiles", NUMBERS: "threshold"},
        {"SIZE": 5, "TILES": 64, **TILE},
    ),
    "_linearise": ({FLOATS: "state first texture data", WHOLE: "plane height width"}, TILE),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_a_gpu_ahead_of_time(name, tmp_path, monkeypatch):
    """For an H100 (sm_90), to machine code; products and sums are rounded one by one, except where the code says so."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kdcache.motion.tv_l1 import triton_level

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, (types, constants) = getattr(triton_level, name), KERNELS[name]
    signature = {argument: kind for kind, arguments in types.items() for argument in arguments.split()}
    signature |= dict.fromkeys(constants, "constexpr")
    assert list(signature) == kernel.arg_names
    at = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    compiled = triton.compile(
        ASTSource(kernel, signature, at), target=GPUTarget("cuda", 90, 32), options=triton_level._ROUNDED
    )
    assert len(compiled.asm["cubin"]) > 1000
    assert ("fma.rn.f32" in compiled.asm["ptx"]) == (name == "_linearise")  # OpenCV's bicubic sums


INTERPRETED = """
import json
import numpy as np
import torch
import torch.nn.functional as F
from kdcache.motion.tv_l1 import torch_engine
from kdcache.motion.tv_l1.params import TVL1Params
from kdcache.motion.tv_l1.triton_level import FusedLevel

coarse = torch.from_numpy(np.random.default_rng(0).random((2, 1, 6, 12), np.float32)) * 255
image = F.interpolate(coarse, size=(13, 72), mode="bicubic")[:, 0]
first, second = image[:, 1:10, 1:67], image[:, 2:11, 3:69].clone()
second[0] = first[0]  # does not move: this pair has settled after one iteration, the other has not
differences = {}
for size in (5, 3):
    params = TVL1Params(nscales=1, warps=1, outer_iterations=1, inner_iterations=3, median_filtering=size)
    flows = []
    for level in (torch_engine.PlainLevel, FusedLevel):
        def made(first, second, u, v, params, level=level):
            texture = torch.stack([second, *torch_engine.gradients(second)])
            return level(first.contiguous(), texture, u, v, params)
        torch_engine._level = made
        with torch.inference_mode():
            flows.append(torch_engine._solve(first, second, None, params))
    differences[size] = float((flows[0] - flows[1]).abs().max())
    moved = [float(flow.abs().max()) for flow in flows[1]]
print(json.dumps([differences, moved]))
"""


def test_kernels_give_what_plain_operations_give():
    """Four tiles of two pairs, by the interpreter, which has to be chosen before Triton is loaded."""
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
    differences, moved = json.loads(done.stdout)
    assert max(differences.values()) < 1e-5
    assert moved[0] == 0
    assert moved[1] > 0.1
