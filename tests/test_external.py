"""Networks from elsewhere: their layers, axes and weights, and that nothing is imported because a file says so."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import own_networks
import pytest
import torch
from click.testing import CliRunner
from make_videos import write_moving_squares
from torch import nn

import kdcache
from kdcache import backbones
from kdcache.backbones import custom, external_weights
from kdcache.backbones.external import External, ExternalBackbone, layer_axes, layer_names, layer_shape
from kdcache.backbones.tap import Tapped, tap
from kdcache.cli import main
from kdcache.errors import OptionError, WeightsError
from kdcache.store import Cache
from kdcache.streams import axes_of
from kdcache.streams.registry import resolve, restore
from kdcache.streams.settings import StreamSettings

VIDEO = "own_networks:video"


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is known or loaded that another test named."""
    yield
    for known in (custom._builders, custom._allowed, custom._trusted, external_weights._last):
        known.clear()
    custom._external.cache_clear()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    write_moving_squares(root)
    return root


def extract(videos: Path, out: Path, *streams: str, **more):
    return kdcache.extract(videos / "clips.csv", videos, out, streams, bar=False, **more)


# Shapes of one input at the library's standard size, by its papers' and documentation's strides.
@pytest.mark.parametrize(
    ("name", "frames", "size", "resize", "layers"),
    [
        ("r3d_18", 16, 112, 128, {"layer3": ("CTHW", (256, 4, 14, 14)), "pool": ("D", (512,))}),
        ("mc3_18", 16, 112, 128, {"layer4": ("CTHW", (512, 16, 7, 7))}),
        ("r2plus1d_18", 16, 112, 128, {"layer4": ("CTHW", (512, 2, 7, 7)), "avgpool": ("CTHW", (512, 1, 1, 1))}),
        ("s3d", 128, 224, 256, {"features.10": ("CTHW", (512, 32, 14, 14)), "pool": ("D", (1024,))}),
        ("mvit_v1_b", 16, 224, 256, {"blocks.10": ("PD", (8 * 14 * 14 + 1, 384)), "pool": ("D", (768,))}),
        (
            "mvit_v2_s",
            16,
            224,
            256,
            {"blocks.10": ("PD", (8 * 14 * 14 + 1, 384)), "conv_proj": ("CTHW", (96, 8, 56, 56))},
        ),
        ("swin3d_t", 32, 224, 256, {"features.4": ("THWC", (16, 14, 14, 384)), "pool": ("D", (768,))}),
        ("swin3d_s", 32, 224, 256, {"avgpool": ("CTHW", (768, 1, 1, 1))}),
        ("swin3d_b", 32, 224, 256, {"norm": ("THWC", (16, 7, 7, 1024))}),
        ("resnet18", 8, 224, 256, {"layer3": ("TCHW", (8, 256, 14, 14)), "pool": ("TD", (8, 512))}),
        ("vit_b_16", 8, 224, 256, {"encoder.layers.encoder_layer_5": ("TPD", (8, 197, 768))}),
        ("swin_t", 8, 224, 232, {"features.3": ("THWC", (8, 28, 28, 192)), "pool": ("TD", (8, 768))}),
        ("convnext_tiny", 8, 224, 236, {"features.5": ("TCHW", (8, 384, 14, 14))}),
    ],
)
def test_layers_of_torchvision(name, frames, size, resize, layers) -> None:
    spec = backbones.input_spec(f"torchvision:{name}")
    assert (spec.frames, spec.size, spec.resize, spec.modality) == (frames, size, resize, "rgb")
    for layer, (axes, shape) in layers.items():
        assert backbones.layer_shape(f"torchvision:{name}", layer) == (layer, shape)
        assert backbones.layer_axes(f"torchvision:{name}", layer) == axes


def test_the_traced_network_and_the_whole_one_give_the_same() -> None:
    """torchvision's extractor, which drops what is not needed, and the hook that leaves early."""
    for name, layer, shape in (
        ("torchvision:r3d_18", "layer2.0", (1, 3, 4, 32, 32)),
        ("torchvision:s3d", "features.6", (1, 3, 8, 32, 32)),
        ("torchvision:swin3d_t", "features.2", (1, 3, 4, 64, 64)),
    ):
        net = backbones.build(name, "random:0")
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole = tap(net.net, layer, x, {})
            cut = Tapped(net.net, layer, {})
            assert cut.is_traced
            assert len(list(cut.parameters())) < len(list(net.net.parameters()))
            torch.testing.assert_close(cut(x), whole, rtol=0, atol=0)


def test_nothing_beyond_the_layer_is_computed() -> None:
    """A network that cannot be traced is left as soon as the layer has been run."""
    own = own_networks.video().net
    own.second.register_forward_hook(lambda *_: pytest.fail("computed beyond the layer"))
    cut = Tapped(own, "first", {})
    assert not cut.is_traced
    assert cut(torch.zeros(2, 3, 4, 8, 8)).shape == (2, 6, 4, 8, 8)


def test_features_are_those_of_the_library_on_normalised_pixels() -> None:
    """By hand: torchvision's own network, its weights' mean and std, and a hook."""
    from torchvision.models.video import R3D_18_Weights, r3d_18

    frozen = backbones.frozen(backbones.build("torchvision:r3d_18", "random:3"), "layer2")
    clip = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    net, shown = r3d_18().eval(), R3D_18_Weights.DEFAULT.transforms()
    found = []
    net.layer2.register_forward_hook(lambda m, a, out: found.append(out))
    mean, std = torch.tensor(shown.mean), torch.tensor(shown.std)
    with torch.no_grad():
        net(((clip / 255 - mean) / std).permute(0, 4, 1, 2, 3))
    torch.testing.assert_close(frozen(clip), found[0], rtol=1e-4, atol=1e-5)


def test_images_are_seen_one_by_one() -> None:
    own = backbones.build(backbones.allow("own_networks:images"))
    clip = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    out = backbones.frozen(own, "0")(clip)
    convolution = own_networks.images().net[0]
    for b in range(2):
        for t in range(3):
            alone = convolution((clip[b, t] / 255).permute(2, 0, 1)[None])[0]
            torch.testing.assert_close(out[b, t], alone.detach(), rtol=1e-5, atol=1e-6)
    pooled = backbones.frozen(own, "pool")(clip)
    torch.testing.assert_close(pooled, out.mean((3, 4)), rtol=1e-5, atol=1e-6)
    assert backbones.layer_axes("own_networks:images", "pool") == "TD"


def test_timm(tmp_path) -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    spec = backbones.input_spec(name)
    assert (spec.frames, spec.size, spec.resize) == (8, 224, 248)  # crop_pct 0.9
    assert backbones.layer_shape(name, "blocks.10") == ("blocks.10", (8, 197, 192))
    assert backbones.layer_shape(name, "blocks.10", frames=2, size=64) == ("blocks.10", (2, 17, 192))
    assert backbones.layer_axes(name, "blocks.10") == "TPD"
    assert backbones.layer_axes("timm:convnext_atto", "stages.2") == "TCHW"
    assert backbones.layer_axes("timm:swin_tiny_patch4_window7_224", "layers.2") == "THWC"
    out = backbones.frozen(backbones.build(name, "random:0"), "pool")(torch.zeros((1, 2, 64, 64, 3), dtype=torch.uint8))
    assert out.shape == (1, 2, 192)
    with pytest.raises(OptionError, match=r"Unknown timm network 'vit_tny'"):
        backbones.input_spec("timm:vit_tny")


def test_transformers(tmp_path, monkeypatch) -> None:
    """A small VideoMAE in a folder, as the hub would give it: input, weights, and a layer by hand."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    size = {"image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
    width = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = transformers.VideoMAEModel(transformers.VideoMAEConfig(**size, **width)).eval()
    model.save_pretrained("tiny")
    transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained("tiny")
    name = "hf:tiny"
    spec = backbones.input_spec(name)
    assert (spec.frames, spec.size, spec.resize) == (4, 32, 36)
    assert backbones.layer_shape(name, "encoder.layer.0") == ("encoder.layer.0", (2 * 4 * 4, 16))
    assert backbones.layer_axes(name, "output") == "PD"
    clip = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(((clip / 255 - 0.5) / 0.5).permute(0, 1, 4, 2, 3)).last_hidden_state
    found = backbones.build(name)
    assert found.weights_id["spec"] == "pretrained"
    torch.testing.assert_close(backbones.frozen(found, "output")(clip), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbones.frozen(found, "pool")(clip), wanted.mean(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(WeightsError, match=r"hf:nowhere: there is no folder nowhere here"):
        backbones.input_spec("hf:nowhere")


def test_v_jepa_2_computes_no_predictor(tmp_path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    config = transformers.VJEPA2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2.0, crop_size=32, patch_size=16,
        frames_per_clip=4, tubelet_size=2, pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2,
    )  # fmt: skip
    transformers.VJEPA2Model(config).save_pretrained("jepa")
    transformers.VJEPA2VideoProcessor(crop_size=32, size=36).save_pretrained("jepa")
    spec = backbones.input_spec("hf:jepa")
    assert (spec.frames, spec.size) == (4, 32)
    assert backbones.layer_shape("hf:jepa", "pool") == ("pool", (24,))
    assert backbones.layer_shape("hf:jepa", "encoder.layer.1") == ("encoder.layer.1", (2 * 2 * 2, 24))
    assert not any(layer.startswith("predictor") for layer in backbones.layer_names("hf:jepa"))


def test_published_weights_that_cannot_be_downloaded(monkeypatch) -> None:
    """The real path as far as the network goes: torchvision asks for its file, and the refusal is a sentence."""
    asked = []

    def refuse(url, *args, **kwargs):
        asked.append(url)
        raise OSError("no network here")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", "/nonexistent")
    monkeypatch.setattr("os.makedirs", lambda *args, **kwargs: None)
    with pytest.raises(
        WeightsError, match=r"The weights of torchvision:mobilenet_v3_small cannot be had \(no network here\)"
    ):
        backbones.build("torchvision:mobilenet_v3_small")
    assert asked == ["https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth"]


def test_weights_are_known_by_what_is_in_memory(tmp_path) -> None:
    """Two files with the same numbers differ as files and agree in memory; another seed differs in both."""
    name = "torchvision:mobilenet_v3_small"
    state = backbones.build(name, "random:0").net.state_dict()
    torch.save(state, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pth")
    ids = [backbones.weights_id(name, w) for w in (tmp_path / "a.pth", tmp_path / "b.pth", "random:0", "random:1")]
    assert ids[0]["sha256"] != ids[1]["sha256"]
    assert ids[0]["state"] == ids[1]["state"] == ids[2]["state"] != ids[3]["state"]
    built = backbones.build(name, tmp_path / "a.pth")
    assert all(torch.equal(v, state[k]) for k, v in built.net.state_dict().items())


def test_a_checkpoint_of_other_classes(tmp_path, caplog) -> None:
    """A fine-tuned network: its classifier is left out with a word, and cannot be cached; anything before it can."""
    state = backbones.build("torchvision:mobilenet_v3_small", "random:0").net.state_dict()
    state |= {"classifier.3.weight": torch.zeros(7, 1024), "classifier.3.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "seven.pth")
    net = backbones.build("torchvision:mobilenet_v3_small", tmp_path / "seven.pth")
    assert "classifier.3.weight, classifier.3.bias is not taken from there" in caplog.text
    backbones.frozen(net, "features")
    for layer in ("classifier.3", "output"):
        with pytest.raises(
            OptionError, match=rf"{layer} needs classifier.3.weight, which the checkpoint does not hold"
        ):
            backbones.frozen(net, layer)
    del state["features.0.0.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=r"net.features.0.0.weight is missing"):
        backbones.build("torchvision:mobilenet_v3_small", tmp_path / "less.pth")


@pytest.mark.parametrize("workers", [1, 2])
def test_own_network_by_import_path_with_any_number_of_workers(videos, tmp_path, workers) -> None:
    report = extract(videos, tmp_path, f"{VIDEO}/second", f"{VIDEO}/pool", workers=workers)
    assert not report.failures
    cache = Cache(tmp_path)
    assert axes_of(cache.recipe(f"{VIDEO}/second")) == "VCTHW"
    maps, pooled = (cache.read(f"{VIDEO}/{layer}", ["v0", "v5"]).astype(np.float32) for layer in ("second", "pool"))
    assert maps.shape == (2, 1, 8, 2, 15, 15)
    np.testing.assert_allclose(pooled, maps.mean((3, 4, 5)), rtol=2e-2, atol=1e-3)
    again = extract(videos, tmp_path, f"{VIDEO}/second", f"{VIDEO}/pool")
    assert again.cached == 6


def test_registered_in_a_notebook_it_reaches_workers(videos, tmp_path) -> None:
    """A function that no module holds is sent by value."""
    size = 32

    def build() -> backbones.Custom:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU())
        return backbones.Custom(net=net, takes="CTHW", frames=4, size=size, axes={"*": "CTHW"})

    build.__module__ = "__main__"
    backbones.register("mine", build)
    assert "mine" in backbones.names()
    extract(videos, tmp_path / "two", "mine/output", workers=2)
    extract(videos, tmp_path / "one", "mine/output")
    both = [Cache(tmp_path / n).read("mine/output", ["v1", "v4"]) for n in ("one", "two")]
    np.testing.assert_array_equal(*both)
    with pytest.raises(OptionError, match="tsm is a network of kdcache"):
        backbones.register("tsm", build)


def test_a_package_offers_a_network_by_entry_point(monkeypatch) -> None:
    point = importlib.metadata.EntryPoint("theirs", VIDEO, custom.GROUP)
    monkeypatch.setattr(custom, "_entry_points", lambda: {"theirs": point})
    assert backbones.layer_shape("theirs", "second") == ("second", (8, 2, 15, 15))
    assert "theirs" in backbones.names()


def test_a_builder_that_gives_other_weights_each_time(videos, tmp_path) -> None:
    choice = external_weights.choose(backbones.allow("own_networks:changing"))
    external_weights.forget()
    with pytest.raises(WeightsError, match="its weights are others than when they were chosen"):
        backbones.build("own_networks:changing", choice)


def test_code_is_not_imported_because_a_file_says_so(videos, tmp_path, monkeypatch) -> None:
    """Everything that reads the cache works without the network's code; computing is refused until a user names it."""
    extract(videos, tmp_path, f"{VIDEO}/second")
    recipe = Cache(tmp_path).recipe(f"{VIDEO}/second")
    for known in (custom._allowed, external_weights._last):
        known.clear()
    custom._external.cache_clear()
    monkeypatch.delitem(sys.modules, "own_networks")
    for command in (["inspect"], ["verify"], ["reindex"]):
        assert CliRunner().invoke(main, [*command, str(tmp_path)]).exit_code == 0
    cache = Cache(tmp_path)
    assert axes_of(cache.recipe(f"{VIDEO}/second")) == "VCTHW"
    kdcache.show(tmp_path, "v0", tmp_path / "sheet.png")
    assert "own_networks" not in sys.modules
    with pytest.raises(OptionError, match=r"names Python code, which is not imported because a file says so"):
        restore(f"{VIDEO}/second", recipe)
    assert "own_networks" not in sys.modules
    custom.import_modules(["own_networks"])
    assert restore(f"{VIDEO}/second", recipe).recipe == recipe


def test_what_is_stated_wrongly_is_refused(videos, tmp_path) -> None:
    def streams(name: str, **settings):
        return resolve([name], StreamSettings(**settings), {})

    with pytest.raises(OptionError, match="Unknown torchvision network 's3e': did you mean 's3d'"):
        streams("torchvision:s3e/pool")
    with pytest.raises(OptionError, match=r"Unknown layer 'secnd': did you mean 'second'"):
        streams(f"{VIDEO}/secnd")
    with pytest.raises(OptionError, match=r"axes of layer 'relu'|run 2 times"):
        streams(f"{VIDEO}/relu")
    with pytest.raises(OptionError, match=r"axes=CHW: layer 'second' of own_networks:video has the shape"):
        streams(f"{VIDEO}/second", axes="CHW")
    with pytest.raises(OptionError, match=r"those of tsm/pool are known|those of tsm-resnet50/pool are known"):
        streams("tsm/pool", axes="TD")
    with pytest.raises(OptionError, match=r"torchvision:mvit_v2_s does not take 8 frames of 224 × 224"):
        streams("torchvision:mvit_v2_s/blocks.3", frames=8)
    with pytest.raises(OptionError, match=r"own_networks:module returned a Video: it must return"):
        streams("own_networks:module/first")
    with pytest.raises(OptionError, match=r"own_networks has no function 'nothing'"):
        streams("own_networks:nothing/first")
    with pytest.raises(OptionError, match=r"no_such_package:net cannot be imported"):
        streams("no_such_package:net/first")
    with pytest.raises(OptionError, match=r"are not known: state them with --axes"):
        backbones.layer_axes("torchvision:mvit_v2_s", "blocks.0.attn.pool_q.pool")
    with pytest.raises(WeightsError, match=r"nofile: no such weights file; give torchvision:s3d a file, or random:0"):
        backbones.build("torchvision:s3d", "nofile")


def test_a_layer_that_mixes_clips_is_no_layer() -> None:
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.twice = nn.Flatten(0, 2), nn.Identity()

        def forward(self, x):
            self.flat(x)
            return self.twice(self.twice(x))

    spec = backbones.InputSpec("rgb", frames=2, size=16)
    made = External(
        name="folding", library="x", version="1", takes="CTHW", input=spec, mean=(0, 0, 0), std=(1, 1, 1),
        make=lambda origin: Folding(), axes=lambda layer, n: "CTHW", on_meta=False,
    )  # fmt: skip
    assert layer_names(made) == ["pool", "output"]
    assert layer_axes(made, "output") == "CTHW"
    for layer, why in (("flat", "clips cannot be told apart"), ("twice", "is run 2 times in a forward")):
        with pytest.raises(OptionError, match=why):
            layer_shape(made, layer)
    assert isinstance(backbones.outline("torchvision:r3d_18"), ExternalBackbone)


def test_fit_extract_train_predict(videos, tmp_path) -> None:
    """A library's network fitted on one's clips, its features at levels, a run on them, an answer for a new video."""
    name = "torchvision:r3d_18"
    settings = {"frames": 2, "size": 32}
    fit = kdcache.fit(name, videos / "clips.csv", videos, tmp_path / "fit", init="random:0", epochs=1, **settings)
    assert fit.weights.name == "torchvision-r3d_18.safetensors"
    more = {"weights": {name: fit.weights}, "levels": 2, **settings}
    extract(videos, tmp_path / "out", f"{name}/pool", **more)
    cache = Cache(tmp_path / "out")
    assert axes_of(cache.recipe(f"{name}/pool")) == "VND"
    quick = {"epochs": 1, "hidden": 4, "teacher_hidden": 2, "device": "cpu"}
    run = kdcache.train("early", shards=tmp_path / "out", out=tmp_path / "run", **quick)
    assert kdcache.cost(run).multiply_adds > 1e6
    answers = list(kdcache.predict(run, videos / "v5.mp4", weights={name: fit.weights}))
    np.testing.assert_allclose(sum(answers[-1].probabilities), 1, rtol=1e-5)


def test_a_checkpoint_without_what_a_layer_needs(tmp_path) -> None:
    """What runs last may be missing, the classifier of a library's file; what runs before it may not."""
    name = backbones.allow("own_networks:early")
    state = own_networks.early().net.state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("block")}, tmp_path / "nostem.pt")
    with pytest.raises(WeightsError, match=r"net.stem.weight is missing"):
        backbones.build(name, tmp_path / "nostem.pt")
    torch.save({k: v for k, v in state.items() if k.startswith("stem")}, tmp_path / "noblock.pt")
    net = backbones.build(name, tmp_path / "noblock.pt")
    backbones.frozen(net, "stem")
    for layer in ("block", "output", "pool"):
        with pytest.raises(OptionError, match="which the checkpoint does not hold"):
            backbones.frozen(net, layer)


def test_a_module_whose_first_axis_is_not_that_of_clips() -> None:
    """Two frames and two clips look alike; three clips do not."""
    name = backbones.allow("own_networks:time_first")
    assert "block" not in backbones.layer_names(name)


def test_parts_named_as_in_a_fitted_file(tmp_path) -> None:
    name = backbones.allow("own_networks:named")
    state = {k: v + 1 for k, v in own_networks.named().net.state_dict().items()}
    torch.save(state, tmp_path / "named.pt")
    net = backbones.build(name, tmp_path / "named.pt")
    assert all(torch.equal(v, state[k]) for k, v in net.net.state_dict().items())


def test_what_a_builder_encloses_is_part_of_the_recipe() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.conv, self.factor = nn.Conv3d(3, 2, 1), factor

        def forward(self, x):
            return self.factor * self.conv(x)

    def factory(factor: float):
        def build() -> backbones.Custom:
            torch.manual_seed(0)
            return backbones.Custom(net=Scaled(factor), takes="CTHW", frames=2, size=32, axes={"*": "CTHW"})

        return build

    versions = []
    for factor in (1.0, 10.0, 1.0):
        backbones.register("scaled", factory(factor))
        versions.append(custom.external("scaled").version)
    assert versions[0] == versions[2] != versions[1]


def test_a_user_s_code_that_fails_is_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(OptionError, match=r"its builder failed with KeyError in .*own_networks.py:\d+"):
        backbones.input_spec(backbones.allow("own_networks:broken"))
    (tmp_path / "half.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match="half:build cannot be imported: SyntaxError"):
        backbones.input_spec(backbones.allow("half:build"))


def test_other_weights_of_torchvision_have_their_own_preprocessing() -> None:
    """Sizes of torchvision's documentation: V1 resizes to 256, V2 to 232; SWAG's end-to-end weights see 384 pixels."""
    assert backbones.input_spec("torchvision:resnet50").resize == 232
    assert backbones.input_spec("torchvision:resnet50.IMAGENET1K_V1").resize == 256
    name = "torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1"
    assert backbones.input_spec(name).size == 384
    assert backbones.layer_shape(name, "encoder.ln") == ("encoder.ln", (8, 24 * 24 + 1, 768))
    with pytest.raises(OptionError, match=r"Unknown weights of resnet50: 'IMAGENET1K_V3'"):
        backbones.input_spec("torchvision:resnet50.IMAGENET1K_V3")


def test_configuration_and_scaling_of_transformers(tmp_path, monkeypatch) -> None:
    """ViViT's processor gives x / 127.5 - 1, then (v - mean) / std; another activation is another recipe."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    size = {"image_size": 32, "num_frames": 2, "tubelet_size": [2, 16, 16]}
    width = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.VivitModel(transformers.VivitConfig(**size, **width)).save_pretrained("vivit")
    processor = transformers.VivitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    processor.save_pretrained("vivit")
    clip = torch.randint(0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    net = backbones.outline("hf:vivit")
    wanted = ((clip.float() / 127.5 - 1) - 0.4) / 0.3
    torch.testing.assert_close(net.prepare(clip), wanted.permute(0, 1, 4, 2, 3), rtol=1e-5, atol=1e-5)
    first = custom.external("hf:vivit").to_recipe()
    config = json.loads(Path("vivit/config.json").read_text())
    Path("vivit/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    custom._external.cache_clear()
    assert custom.external("hf:vivit").to_recipe() != first


def test_code_in_a_folder_of_the_hub_is_not_run(tmp_path, monkeypatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "evil"
    folder.mkdir()
    content = {"model_type": "evil", "auto_map": {"AutoConfig": "conf.Evil", "AutoModel": "conf.Net"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "conf.py").write_text("open('PWNED', 'w').write('x')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(WeightsError, match="hf:evil: its configuration cannot be had"):
        backbones.input_spec("hf:evil")
    assert not (tmp_path / "PWNED").exists()
