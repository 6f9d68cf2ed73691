"""Networks compiled by ``torch.compile``: on the CPU as far as that goes; test_gpu.py does it where there is a GPU."""

from __future__ import annotations

import shutil

import pytest
import torch
from click.testing import CliRunner
from gpu_cases import NETWORKS, pixels, relative
from make_videos import write_moving_squares

import kdcache
from kdcache import backbones
from kdcache.backbones import compiled as compiling
from kdcache.backbones import freeze
from kdcache.cli import main
from kdcache.errors import OptionError


def as_on_a_gpu(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> freeze.FrozenLayers:
    """A network without the CPU's own convolutions, which torch cannot follow."""
    monkeypatch.setattr(freeze, "onednn_available", lambda: False)
    return freeze.FrozenLayers(backbones.build(name, "random:0"), [layer])


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(("name", "layer", "frames", "size"), NETWORKS)
def test_torch_follows_each_network_from_pixels_to_features(name, layer, frames, size, monkeypatch):
    """Nothing is left to Python between them: ``fullgraph`` refuses what torch cannot follow."""
    frozen = as_on_a_gpu(name, layer, monkeypatch)
    followed = torch.compile(frozen._features, dynamic=False, backend="eager", fullgraph=True)
    x = pixels(frozen._net, frames, size, 1)
    with torch.inference_mode():
        assert torch.equal(followed((layer,), x)[0], frozen._features((layer,), x)[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here, by which torch compiles for a CPU")
def test_compiled_features_are_those_of_the_network(monkeypatch):
    frozen = as_on_a_gpu("resnet34", "layer1", monkeypatch)
    compute, x = frozen._compute(("layer1",)), pixels(frozen._net, 2, 32, 1)
    frozen._compile = True
    own = frozen._compute(("layer1",))
    with torch.inference_mode():
        assert own is not compute
        assert relative(own(x)[0], compute(x)[0]) < 1e-5


def test_more_shapes_are_compiled_than_torch_takes_by_itself(monkeypatch):
    """It counts those of all networks together, up to 8: a batch that is halved a few times has as many."""
    graphs, own = [], torch.compile

    def counted(graph, inputs):
        graphs.append(inputs)
        return graph.forward

    def twice(x):
        return 2 * x

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: own(function, dynamic=dynamic, backend=counted))
    with torch.inference_mode():
        call = compiling.compiled(twice, "TSM")
        assert all(torch.equal(call(torch.ones(n)), torch.full((n,), 2.0)) for n in range(1, 12))
    assert len(graphs) == 11
    assert torch._dynamo.config.recompile_limit < compiling.VARIANTS  # of what else the process compiles


def test_what_cannot_be_compiled_is_said_with_the_remedy(monkeypatch):
    from torch._inductor.exc import CppCompileError

    def failing(function, dynamic):
        def call(x):
            raise CppCompileError(["g++"], "no g++ here")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(OptionError, match=r"^TSM cannot be compiled here \(CppCompileError.*leave --compile out\.$"):
        compiling.compiled(torch.neg, "TSM")(torch.ones(1))


def test_the_sentence_says_what_the_compiler_lacks(monkeypatch):
    own = torch.compile

    def lacking(graph, inputs):
        raise FileNotFoundError("no C compiler")

    def twice(x):
        return 2 * x

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: own(function, dynamic=dynamic, backend=lacking))
    with pytest.raises(OptionError, match=r"^TSM cannot .* \(FileNotFoundError in [^\n]*\(no C compiler\)\): leave"):
        compiling.compiled(twice, "TSM")(torch.ones(2))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("of the network")])
def test_other_failures_stay_what_they_are(monkeypatch, error):
    def failing(function, dynamic):
        def call(x):
            raise error

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(RuntimeError) as caught:
        compiling.compiled(torch.neg, "TSM")(torch.ones(1))
    assert caught.value is error


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--engine", "ray"]])
def test_on_a_cpu_it_is_refused_before_anything_is_written(tmp_path, more):
    write_moving_squares(tmp_path)
    arguments = ["--manifest", tmp_path / "clips.csv", "--root", tmp_path, "-o", tmp_path / "out", "--compile"]
    arguments += ["--stream", "i3d-rgb/mixed4a", "--weights", "random:0", "--device", "cpu", *more]
    done = CliRunner().invoke(main, ["extract", *map(str, arguments)])
    assert done.exit_code == 1
    assert "Networks are compiled for a GPU alone: leave --compile out" in str(done.exception) + done.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="leave --compile out"):
        backbones.frozen_layers(backbones.build("resnet34", "random:0"), ["layer1"], compile=True)


def test_a_run_hands_it_to_its_networks(tmp_path, monkeypatch):
    """The option comes from ``extract`` to where networks are frozen."""
    write_moving_squares(tmp_path)
    seen = []
    monkeypatch.setattr(compiling, "refuse_on_cpu", seen.append)
    monkeypatch.setattr(freeze, "refuse_on_cpu", seen.append)
    options = {"weights": {"resnet34": "random:0"}, "size": 32, "frames": 2, "device": "cpu", "bar": False}
    report = kdcache.extract(
        tmp_path / "clips.csv", tmp_path, tmp_path / "out", ["resnet34/layer1"], compile=True, **options
    )
    assert (report.extracted, seen) == (6, ["cpu", "cpu"])
