"""Finding, fetching, opening and matching checkpoints: what is accepted unchanged, and what is refused and how."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import logging
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from golden_weights import WEIGHTS
from safetensors.torch import save_file

from kdcache import backbones
from kdcache.backbones import checkpoint, published, weights
from kdcache.backbones.checkpoint import fill, load_state_dict, random_init
from kdcache.backbones.i3d import I3D, I3DTail
from kdcache.backbones.resnet import ResNet34
from kdcache.cli import main
from kdcache.demo.tour import choose_weights
from kdcache.errors import OptionError, WeightsError
from kdcache.methods.recognition_options import RECIPES


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any checkpoint: the folder that would be searched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KDCACHE_WEIGHTS", raising=False)
    return tmp_path / "cache" / "kdcache" / "weights"


@pytest.fixture(scope="module")
def state() -> checkpoint.State:
    """The state dict of an I3D for RGB with 5 classes."""
    with torch.device("meta"):
        net = I3D(num_classes=5)
    return random_init(net, 0)


def publish(monkeypatch: pytest.MonkeyPatch, file: Path, **changes: object) -> published.Published:
    """Let the table's i3d-rgb row be ``file``, at its own address and with no checksum unless given."""
    fields = {"file": file.name, "url": file.as_uri(), "sha256": None, "git_blob": None} | changes
    row = dataclasses.replace(published.TABLE["i3d-rgb"], **fields)
    monkeypatch.setitem(published.TABLE, "i3d-rgb", row)
    return row


def as_saved(state: checkpoint.State, path: Path, form: str) -> Path:
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif form == "old":  # as PyTorch 0.3 wrote: not a zip, and without the counters that came later
        plain = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save(plain, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("form", ["plain", "old", "wrapped", "safetensors"])
def test_checkpoints_load_unchanged(state, tmp_path: Path, form: str) -> None:
    path = as_saved(state, tmp_path / ("net.safetensors" if form == "safetensors" else "net.pt"), form)
    net = backbones.build("i3d-rgb", weights=path)
    assert not net.training
    assert net.layers["logits"] == (5, 3)  # the checkpoint says how many classes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert net.weights_id == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert backbones.weights_id("i3d-rgb", path) == net.weights_id


@pytest.mark.parametrize("name", ["i3d-rgb", "i3d-flow"])
def test_networks_have_the_published_names_and_shapes(name: str) -> None:
    file = WEIGHTS / f"{name.replace('-', '_')}_state_dict.json"
    net = backbones.build(name, weights="random:0")
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == json.loads(file.read_text())


def test_a_new_classifier_is_drawn_only_when_asked_and_said(state, tmp_path: Path, caplog) -> None:
    path = as_saved(state, tmp_path / "net.pt", "plain")
    net = backbones.build("i3d-rgb", weights=path, num_classes=7)
    assert f"{path} has 5 classes: the classifier for 7 starts anew" in caplog.text
    own = net.state_dict()
    assert own["logits.conv3d.weight"].shape[0] == 7
    assert torch.equal(own["Mixed_5c.b0.conv3d.weight"], state["Mixed_5c.b0.conv3d.weight"])
    with pytest.raises(WeightsError, match="logits"):
        fill(I3D(num_classes=7), state, path)


def test_misfits_name_the_file_the_parameter_and_the_network(state, tmp_path: Path) -> None:
    rgb = as_saved(state, tmp_path / "rgb.pt", "plain")
    with pytest.raises(WeightsError) as error:
        backbones.build("i3d-flow", weights=rgb)
    assert str(rgb) in str(error.value)
    assert "Conv3d_1a_7x7.conv3d.weight has shape [64, 3, 7, 7, 7], expected [64, 2, 7, 7, 7]" in str(error.value)
    assert "looks like an I3D with 3 input channels (i3d-rgb)" in str(error.value)
    without = {k: v for k, v in state.items() if k != "Mixed_3b.b1b.bn.running_mean"}
    with pytest.raises(WeightsError, match=r"Mixed_3b\.b1b\.bn\.running_mean is missing, expected \[128\]"):
        fill(I3D(num_classes=5), without, "a.pt")
    with pytest.raises(WeightsError, match=r"extra\.weight \(and 0 more\) is not part of this network"):
        fill(I3D(num_classes=5), {**state, "extra.weight": torch.zeros(1)}, "a.pt")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("tsm_resnet50", "TSM ResNet"),
        ("resnet34", "ResNet-34"),
        ("vacnn", "VA-CNN"),
        ("i3d_flow", r"I3D with 2 input channels \(i3d-flow\)"),
    ],
)
def test_other_networks_are_recognised(file: str, words: str) -> None:
    shapes = json.loads((WEIGHTS / f"{file}_state_dict.json").read_text())
    state = {k.removeprefix("module."): torch.empty(shape, device="meta") for k, shape in shapes.items()}
    with pytest.raises(WeightsError, match=f"looks like an? {words}"):
        fill(I3D(), state, "other.pt")


class _Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    for name in ("noise.pt", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all" * 9)
        with pytest.raises(WeightsError, match=f"{name} is not a checkpoint"):
            load_state_dict(tmp_path / name)
    torch.save({"a": torch.zeros(3)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-200])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(_Trap(), protocol=2))
    for name in ("cut.pt", "empty.pt", "code.pt"):
        with pytest.raises(WeightsError, match=f"{name} is not a checkpoint"):
            load_state_dict(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_state_dict(tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_state_dict(tmp_path / "absent.pt")


def test_search_order(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path / "own", home):
        folder.mkdir(parents=True)
    publish(monkeypatch, tmp_path / "rgb.pt")
    with pytest.raises(WeightsError, match=r"rgb\.pt.* are not in .*kdcache weights fetch i3d-rgb.*random:0"):
        weights.find("i3d-rgb")
    (home / "rgb.pt").write_bytes(b"cache")
    assert weights.find("i3d-rgb") == weights.path("i3d-rgb") == home / "rgb.pt"
    monkeypatch.setenv("KDCACHE_WEIGHTS", str(tmp_path / "own"))
    assert weights.find("i3d-rgb") == home / "rgb.pt"
    (tmp_path / "own" / "rgb.pt").write_bytes(b"own")
    (tmp_path / "own" / "mine.pt").write_bytes(b"mine")
    assert weights.find("i3d-rgb") == tmp_path / "own" / "rgb.pt"
    assert weights.find("i3d-rgb", "mine.pt") == tmp_path / "own" / "mine.pt"
    (tmp_path / "named.pt").write_bytes(b"named")
    assert weights.find("i3d-rgb", tmp_path / "named.pt") == tmp_path / "named.pt"
    with pytest.raises(WeightsError, match="no such weights file"):
        weights.find("i3d-rgb", tmp_path / "nowhere.pt")
    with pytest.raises(WeightsError, match="No weights are published for vacnn"):
        weights.find("vacnn")


def test_published_files_are_held_against_their_checksum(tmp_path, home, monkeypatch) -> None:
    home.mkdir(parents=True)
    (home / "rgb.pt").write_bytes(b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin` and `sha256sum`
    git = "ce013625030ba8dba906f756967f9e9ca394464a"
    sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    for right in ({"git_blob": git}, {"sha256": sha}, {"git_blob": "0" * 40, "sha256": sha}):
        publish(monkeypatch, tmp_path / "rgb.pt", **right)
        assert weights.find("i3d-rgb") == weights.fetch("i3d-rgb") == home / "rgb.pt"
    for wrong in ({"git_blob": "0" * 40}, {"sha256": "0" * 64}):
        publish(monkeypatch, tmp_path / "rgb.pt", **wrong)
        for look in (weights.find, weights.fetch, weights.path):
            with pytest.raises(WeightsError, match=r"is not the published rgb\.pt: its checksum is"):
                look("i3d-rgb")


def test_fetch_downloads_whole_files_only(tmp_path, home, monkeypatch, caplog) -> None:
    original = tmp_path / "rgb.pt"
    original.write_bytes(b"weights" * 1000)
    publish(monkeypatch, original, sha256="0" * 64)
    with pytest.raises(WeightsError, match="checksum"):
        weights.fetch("i3d-rgb")
    assert list(home.iterdir()) == []
    publish(monkeypatch, original)
    with caplog.at_level(logging.WARNING, "kdcache"):
        assert weights.fetch("i3d-rgb").read_bytes() == original.read_bytes()
    assert "no published checksum is known" in caplog.text
    assert [p.name for p in home.iterdir()] == ["rgb.pt"]


def test_a_broken_download_leaves_nothing(tmp_path, home, monkeypatch) -> None:
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 400)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Half) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        publish(monkeypatch, tmp_path / "rgb.pt", url=f"http://127.0.0.1:{server.server_port}/rgb.pt")
        with pytest.raises(WeightsError, match=r"rgb\.pt could not be downloaded .*put it at"):
            weights.fetch("i3d-rgb")
        thread.join()
    assert list(home.iterdir()) == []


def test_where_no_file_can_be_kept_fetch_says_so_and_the_demo_takes_random_weights(tmp_path, home, monkeypatch) -> None:
    """A home that cannot be written to; nothing is asked of the network."""
    publish(monkeypatch, tmp_path / "rgb.pt", url="http://127.0.0.1:9/rgb.pt")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot be written to .*file/kdcache/weights: set XDG_CACHE_HOME"):
        weights.fetch("i3d-rgb")
    assert choose_weights() == ({"i3d-rgb": "random:0"}, "with a RANDOM backbone")


def test_fetch_offline_says_where_to_put_the_file(tmp_path, home, monkeypatch) -> None:
    publish(monkeypatch, tmp_path / "rgb.pt", url="http://127.0.0.1:9/rgb.pt")
    with pytest.raises(WeightsError) as error:
        weights.fetch("i3d-rgb")
    assert "http://127.0.0.1:9/rgb.pt" in str(error.value)
    assert str(home / "rgb.pt") in str(error.value)
    with pytest.raises(WeightsError, match=r"drive\.google\.com"):
        weights.fetch("resnext101")
    with pytest.raises(OptionError, match="did you mean 'i3d-rgb'"):
        weights.fetch("i3d-rbg")


def test_the_table_is_complete_and_invents_no_checksum(home: Path) -> None:
    rows = weights.list_weights()
    assert {row["name"] for row in rows} >= {"i3d-rgb", "i3d-flow", "tsm-resnet50", "resnet34", "resnext101"}
    for row in rows:
        assert row["path"] is None
        assert all(row[key] for key in ("name", "file", "url", "licence", "preprocessing", "converter"))
        kind, _, digits = row["checksum"].partition(":")
        assert (kind, len(digits)) in {("sha256", 64), ("git-blob", 40), ("not confirmed here", 0)}
    home.mkdir(parents=True)
    (home / "flow_imagenet.pt").touch()
    assert next(r for r in weights.list_weights() if r["name"] == "i3d-flow")["path"] == str(home / "flow_imagenet.pt")


@pytest.mark.parametrize("name", ["resnet34-flow", "resnet34-flow5"])
def test_flow_resnets_take_the_published_rgb_row(name: str, home: Path, tmp_path: Path, monkeypatch) -> None:
    """Nobody publishes theirs; nothing is said to be theirs."""
    state = random_init(ResNet34(5), 0)
    torch.save(state, tmp_path / "rgb34.pth")
    made = {"file": "rgb34.pth", "url": (tmp_path / "rgb34.pth").as_uri(), "sha256": None}
    monkeypatch.setitem(published.TABLE, "resnet34", dataclasses.replace(published.TABLE["resnet34"], **made))
    assert name not in {row["name"] for row in weights.list_weights()}
    (row,) = (row for row in weights.list_weights() if name in row["adapted_for"])
    assert (row["name"], row["backbone"]) == ("resnet34", "resnet34")
    listed = CliRunner().invoke(main, ["weights", "list"]).output
    assert "resnet34  (resnet34; adapted for resnet34-flow and resnet34-flow5, BSD" in listed
    with pytest.raises(WeightsError, match=rf"for {name} \(rgb34\.pth\) are not in .*kdcache weights fetch resnet34`"):
        weights.find(name)
    net = backbones.build(name)  # fetches it
    assert weights.find(name) == weights.find("resnet34") == home / "rgb34.pth"
    assert net.weights_id == backbones.weights_id("resnet34", home / "rgb34.pth")
    assert net.layers["logits"] == (20, 5)
    kernel = net.state_dict()["conv1.weight"]
    assert torch.allclose(kernel, state["conv1.weight"].mean(1, keepdim=True).expand_as(kernel))


def test_random_weights_are_explicit_loud_and_the_same_each_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_announced", set())  # each is told of once a process
    with caplog.at_level(logging.WARNING, "kdcache"):
        first = backbones.build("i3d-flow", weights="random:3", num_classes=4)
    assert "RANDOM weights (random:3)" in caplog.text
    again = backbones.build("i3d-flow", weights="random:3", num_classes=4).state_dict()
    other = backbones.build("i3d-flow", weights="random:4", num_classes=4).state_dict()
    stem = "Conv3d_1a_7x7.conv3d.weight"
    assert all(torch.equal(a, again[k]) for k, a in first.state_dict().items())
    assert not torch.equal(again[stem], other[stem])
    assert first.weights_id == {"spec": "random:3", "rule": weights.RANDOM_RULE}
    # the rule is part of recipes: if these numbers move, its version must
    assert again[stem].flatten()[:2].tolist() == pytest.approx([-0.0270088129, 0.0041481494], abs=1e-9)
    tail = random_init(I3DTail(4), 3)
    assert all(torch.equal(value, again[name]) for name, value in tail.items())
    for bad in ("random:", "random:-1", "random:x"):
        with pytest.raises(OptionError, match="random:0"):
            backbones.build("i3d-rgb", weights=bad)


def test_digests_follow_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = weights.weights_digest(file)
    file.write_bytes(b"second")
    assert first == hashlib.sha256(b"one").hexdigest()
    assert weights.weights_digest(file) == hashlib.sha256(b"second").hexdigest()


def test_fit_is_advised_where_it_is_possible(home: Path) -> None:
    assert set(RECIPES) == set(weights.FITTED)
    for name in ("vacnn", "egornn"):
        with pytest.raises(WeightsError) as error:
            backbones.build(name)
        assert ("kdcache fit" in str(error.value)) == (name == "vacnn")


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; from kdcache import backbones as b; "
        "b.layer_shape('i3d-rgb', 'mixed4a', size=112); b.weights_id('i3d-rgb', 'random:0'); "
        "b.input_spec('i3d-flow'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
