"""What an answer costs: counts by hand, time through the code that predicts, a table in every comparison."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from click.testing import CliRunner
from make_videos import pictures, write
from unsealed import unsealed

import kdcache
import kdcache.motion
from kdcache import backbones
from kdcache.cli import main
from kdcache.errors import OptionError, SourceError
from kdcache.report.costs import cost_section
from kdcache.report.tables import markdown
from kdcache.runs import latency
from kdcache.runs.ablation.conclusion import conclude
from kdcache.runs.cost import Cost, costs
from kdcache.runs.counts import counted
from kdcache.runs.run import Run
from kdcache.stopwatch import part, stopwatch

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES, SIZE, WIDTH, CLASSES = 9, 32, 16, 2
MAPS = ("i3d-rgb/mixed4a", "i3d-flow/mixed4a")
RELATION = {
    "backbone": "i3d",
    "head": "light",
    "width": WIDTH,
    "frames": FRAMES,
    "size": SIZE,
    "teacher": "epochs=1",
    "appearance": "epochs=1",
    "student": "epochs=1",
    "device": "cpu",
}
RESNET = "resnet34/layer3"
EGORNN = {"network": "rgb", "frames": 2, "size": SIZE, "hidden": 8, "device": "cpu"}
EGORNN |= dict.fromkeys(("rgb_1", "rgb_2"), "epochs=1 milestones= batch_size=2")
RECOGNITION = {"init": "random:0", "frames": 2, "size": SIZE, "epochs": 1, "batch_size": 2, "lr": 0.01, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Weights are drawn once: frozen networks are copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "build", functools.cache(backbones.build))
        patch.setattr("kdcache.extraction.run.cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four clips whose maps of I3D (RGB and flow) and of ResNet-34, and whose frames, are cached."""
    root = tmp_path_factory.mktemp("videos")
    splits = ("train", "train", "validation", "test")
    for i in range(len(splits)):
        write(root / f"v{i}.mp4", pictures(20, 64, 48, seed=i))
    rows = [(f"v{i}", f"v{i}.mp4", np.nan, np.nan, split, 3 * (i % 2)) for i, split in enumerate(splits)]
    columns = ["clip_id", "source", "start_s", "stop_s", "split", "label"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "clips.csv", index=False)
    weights = dict.fromkeys(("i3d-rgb", "i3d-flow", "resnet34"), "random:0")
    calls = [((name,), {"frames": FRAMES, "size": SIZE}) for name in MAPS]
    calls += [((RESNET, "resnet34/pool"), {"frames": 2, "size": SIZE}), (("rgb",), {"short_side": 40})]
    for streams, settings in calls:  # flow in a shard of its own, which a test destroys
        kdcache.extract(root / "clips.csv", root, root / "out", streams, weights=weights, bar=False, **settings)
    return root


@pytest.fixture(scope="module")
def runs(videos, tmp_path_factory):
    """RGB alone, from a student that has learned from flow; and two streams."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"student": {"ir": "none"}, "two-stream": {}}
    return {
        network: kdcache.train("relation", videos / "out", out=folder / network, network=network, **RELATION, **given)
        for network, given in made.items()
    }


@pytest.fixture(scope="module")
def egornn(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("egornn") / "run"
    return kdcache.train("egornn", videos / "out", stream=RESNET, out=out, **EGORNN)


def light_head(positions: int) -> tuple[int, int]:
    """Parameters and multiply-adds of a light head on a map of 480 channels, by hand."""
    project, attend, classify = 480 * WIDTH, WIDTH, WIDTH * CLASSES
    parameters = project + 2 * WIDTH + (attend + 1) + (classify + CLASSES)  # a batch norm has two numbers a channel
    return parameters, positions * (project + attend + WIDTH) + classify  # the last WIDTH: the weighted mean


def on_tensors(name: str, layer: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and multiply-adds of a backbone that really computes, from its convolutions' inputs and outputs."""
    net, macs = backbones.build(name, "random:0"), []

    def seen(module, given, output):
        volume = output.numel() // output.shape[1]
        macs.append(volume * module.weight.numel())

    hooks = [m.register_forward_hook(seen) for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d))]
    with torch.no_grad():
        net.features(net.prepare(torch.zeros(shape, dtype=torch.uint8)), layer)
    for hook in hooks:
        hook.remove()
    cut = backbones.outline(name)
    cut.truncate(layer)
    return sum(p.numel() for p in cut.parameters()), sum(macs)


def test_a_head_and_the_backbone_below_it(runs):
    found = kdcache.cost(runs["student"])
    maps = runs["student"].training_data.data.inputs["rgb"].shape
    assert maps[0] == 480
    positions = int(np.prod([-(-n // 2) for n in maps[1:]]))
    head, below = light_head(positions), on_tensors("i3d-rgb", "mixed4a", (1, FRAMES, SIZE, SIZE, 3))
    assert found == Cost((MAPS[0],), head[0] + below[0], head[1] + below[1], 0)
    two = kdcache.cost(runs["two-stream"].path)
    flow = on_tensors("i3d-flow", "mixed4a", (1, FRAMES, SIZE, SIZE, 2))
    assert two.inputs == MAPS
    assert two.parameters == 2 * head[0] + below[0] + flow[0]
    assert two.multiply_adds == 2 * head[1] + below[1] + flow[1]
    assert two.flow_fields == FRAMES


@pytest.mark.parametrize("name", ["tsm-resnet50", "resnet34-flow", "resnext101", "vacnn"])
def test_backbones_are_counted_without_weights(name):
    spec, layer = backbones.input_spec(name), "pool"
    frames = {"resnext101": 16, "tsm-resnet50": 8}.get(name, 1)
    side = 224 if name == "vacnn" else 32
    shape = (1, frames, side, side, spec.channels)
    net = backbones.outline(name)
    x = torch.zeros(shape, dtype=torch.uint8, device="meta")
    parameters, multiply_adds = counted(net, lambda: net.features(net.prepare(x), layer))
    want = on_tensors(name, layer, shape)
    if name == "vacnn":  # the layer that chooses the view, the matrices of three turns, and turning each pixel
        want = (want[0], want[1] + 6272 * 6 + 2 * 27 + 9 + 9 * side * side)
    assert (sum(parameters.values()), multiply_adds) == want
    assert all(p.is_meta for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) > want[0]  # the classifier behind the layer is not counted


def test_what_an_answer_does_not_use_is_not_counted(egornn):
    """The ResNet below the cached maps is in the branch, too; the classifier of ImageNet gives the attention."""
    whole = sum(p.numel() for p in egornn.network().parameters())
    assert kdcache.cost(egornn).parameters == whole
    unused = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "unused": torch.nn.Linear(3, 2)}).to("meta")
    parameters, multiply_adds = counted(unused, lambda: unused["used"](torch.zeros(5, 3, device="meta")))
    assert (sum(parameters.values()), multiply_adds) == (8, 30)


def test_recurrent_layers_are_counted():
    lstm = torch.nn.LSTM(8, 4, batch_first=True).to("meta")
    parameters, multiply_adds = counted(lstm, lambda: lstm(torch.zeros(1, 5, 8, device="meta")))
    assert (sum(parameters.values()), multiply_adds) == (4 * (8 * 4 + 4 * 4 + 2 * 4), 5 * 4 * (8 * 4 + 4 * 4))


def test_a_backbone_below_two_streams_is_counted_once(egornn, videos):
    one = counts_of(videos, RESNET)
    below = on_tensors("resnet34", "layer3", (1, 2, SIZE, SIZE, 3))
    assert one == below
    assert counts_of(videos, RESNET, RESNET) == one
    assert counts_of(videos, RESNET, "resnet34/pool") == on_tensors("resnet34", "pool", (1, 2, SIZE, SIZE, 3))
    more = counts_of(videos, RESNET, MAPS[0])
    i3d = on_tensors("i3d-rgb", "mixed4a", (1, FRAMES, SIZE, SIZE, 3))
    assert more == tuple(np.add(one, i3d))


def counts_of(videos, *streams):
    from kdcache.runs import counts

    cache = kdcache.Cache(videos / "out")
    recipes = [(name, cache.recipe(name)) for name in streams]
    return counts._below([counts._Read(name, recipe, counts._restored(name, recipe), None) for name, recipe in recipes])


def test_privileged_flow_is_neither_counted_nor_computed(runs, videos, tmp_path, monkeypatch):
    student = shutil.copytree(runs["student"].path, tmp_path / "run")
    cache = shutil.copytree(videos / "out", tmp_path / "out")
    streams_cache.shard_of(cache, MAPS[1]).write_bytes(b"no longer a shard")
    config = unsealed(student / "config.toml")
    config.write_text(config.read_text().replace(str(videos / "out"), str(cache)))

    def never(*given, **more):
        raise AssertionError("flow was computed")

    with monkeypatch.context() as patch:
        patch.setattr(kdcache.motion, "tvl1_pairs", never)
        found = kdcache.cost(student, videos / "v3.mp4", repeats=1)
        with pytest.raises(AssertionError, match="flow was computed"):
            kdcache.cost(runs["two-stream"], videos / "v3.mp4", repeats=1)
    assert (found.flow_fields, found.flow_seconds, found.device) == (0, 0.0, "cpu")
    assert found.seconds is not None
    assert found.seconds > 0


def test_flow_that_is_read_is_timed(runs, videos):
    found = kdcache.cost(runs["two-stream"], videos / "v3.mp4", start=0.2, stop=0.8, repeats=2)
    assert found.seconds is not None
    assert found.flow_seconds is not None
    assert 0 < found.flow_seconds < found.seconds


def test_everything_is_loaded_once(runs, videos, monkeypatch):
    """One answer that is not timed, then turns; networks are built for the first alone."""
    order, built, once = [], [], latency.Answering.once
    monkeypatch.setattr(latency.Answering, "once", lambda self: (order.append(id(self)), once(self))[1])
    frozen = backbones.frozen_layers
    monkeypatch.setattr(backbones, "frozen_layers", lambda *a, **k: (built.append(len(order)), frozen(*a, **k))[1])
    both = [runs["student"].path, runs["two-stream"].path]
    costs(both, videos / "v3.mp4", repeats=2)
    first, second = order[:2]
    assert order == [first, second] * 3
    assert built == [1, 2, 2]


def test_answers_are_those_of_predict(runs, videos):
    from kdcache.runs.online.loading import load

    loaded = load(Run(runs["two-stream"].path))
    for name in ("v3", "v0", "v3"):
        (told,) = loaded.answers(videos / f"{name}.mp4", (None, None, None, None))
        (want,) = kdcache.predict(runs["two-stream"].path, videos / f"{name}.mp4")
        assert np.array_equal(told.probabilities, want.probabilities)


def test_runs_on_frames_and_on_sources(videos, tmp_path):
    cached = kdcache.train(
        "recognition", videos / "out", out=tmp_path / "run", backbone="resnet34", augmentations=2, **RECOGNITION
    )
    fitted = kdcache.fit("resnet34", videos / "clips.csv", videos, tmp_path / "fit", **RECOGNITION)
    parameters, multiply_adds = on_tensors("resnet34", "pool", (1, 2, SIZE, SIZE, 3))
    want = (parameters + 513 * CLASSES, multiply_adds + 512 * CLASSES)
    (videos / "v0.mp4").rename(tmp_path / "v0.mp4")  # no clip of the manifest is read for it
    for run in (cached, fitted.run):
        found = kdcache.cost(run.path, videos / "v3.mp4", repeats=1)
        assert (found.parameters, found.multiply_adds, found.flow_fields) == (*want, 0)
        assert found.inputs == ("rgb",)
        assert found.seconds is not None
        assert found.seconds > 0
    (tmp_path / "v0.mp4").rename(videos / "v0.mp4")


def test_levels_of_early_recognition(videos, tmp_path):
    settings = {"levels": 3, "frames": 8, "size": SIZE, "weights": {"tsm": "random:0"}, "bar": False}
    kdcache.extract(videos / "clips.csv", videos, tmp_path / "out", ["tsm/clip"], **settings)
    options = {"epochs": 1, "hidden": 4, "teacher_hidden": 2, "device": "cpu", "validation": 0.0}
    run = kdcache.train("early", tmp_path / "out", out=tmp_path / "run", **options)
    found = kdcache.cost(run, videos / "v3.mp4", repeats=1)
    of_tsm, of_level = on_tensors("tsm-resnet50", "clip", (1, 8, SIZE, SIZE, 3))
    gates = 3 * 4  # a GRU's, of 4 cells
    assert found.parameters == of_tsm + gates * (2048 + 4 + 2) + (4 + 1) * CLASSES
    assert found.multiply_adds == 3 * (of_level + gates * (2048 + 4) + 4 * CLASSES)
    assert found.seconds is not None
    assert found.seconds > 0
    teacher = kdcache.train("early", tmp_path / "out", out=tmp_path / "teacher", model="teacher", **options)
    assert kdcache.cost(teacher).parameters > of_tsm
    with pytest.raises(OptionError, match="is a teacher, which needs the whole clip"):
        kdcache.cost(teacher, videos / "v3.mp4")


def test_what_cannot_be_said_is_one_sentence(runs, videos, tmp_path):
    run = runs["student"]
    for given, message in (
        ({"repeats": 0}, "repeats=0: give 1 or more"),
        ({"start": 1.0}, "start and stop are of a source"),
    ):
        with pytest.raises(OptionError, match=message):
            kdcache.cost(run, **given)
    with pytest.raises(SourceError, match="no such file"):
        kdcache.cost(run, videos / "v9.mp4")
    unfinished = shutil.copytree(run.path, tmp_path / "run")
    (unfinished / "metrics.json").unlink()
    with pytest.raises(OptionError, match="has not finished training"):
        kdcache.cost(unfinished)
    table = streams_cache.rows(4, 2, 2)
    vectors = list(np.random.default_rng(0).normal(size=(8, 1, 4, 6)).astype(np.float16))
    options = {"epochs": 1, "hidden": 4, "teacher_hidden": 2, "device": "cpu"}
    for name, recipe, message in (
        ("imported", streams_cache.imported("tsm/levels", (1, 4, 6), "VND"), "tsm/levels was imported, so what"),
        ("short", streams_cache.features("vacnn/pool"), "vacnn/pool: what computing it takes is not known, for its"),
    ):
        recipe |= {"progress": {"levels": 4}}
        folder = streams_cache.write(tmp_path / name, table, [(recipe, vectors)])
        other = kdcache.train("early", folder, out=tmp_path / f"run-{name}", **options)
        with pytest.raises(OptionError, match=message):
            kdcache.cost(other)


def test_command(runs, videos):
    paths = [str(run.path) for run in runs.values()]
    plain = CliRunner().invoke(main, ["cost", *paths])
    assert plain.exit_code == 0, plain.output
    head, _, *lines = plain.stdout.partition("\n\n")[0].splitlines()
    assert "the arithmetic of TV-L1 is not in it" in plain.stdout
    assert " ".join(head.split()) == "| run | inputs | parameters (M) | multiply-adds (G) | flow fields |"
    assert len({*map(len, [head, *lines])}) == 1
    assert [line.split(" | ")[1].strip() for line in lines] == [MAPS[0], ", ".join(MAPS)]
    args = ["cost", *paths, "--source", str(videos / "v3.mp4"), "--start", "0.2", "--stop", "0.8", "--repeats", "1"]
    timed = CliRunner().invoke(main, args)
    assert timed.exit_code == 0, timed.output
    assert timed.stdout.splitlines()[0].endswith("| latency (ms) | of it flow |")
    assert timed.stdout.splitlines()[2].endswith("| 0 %        |")
    told = json.loads(CliRunner().invoke(main, [*args, "--json"]).stdout)
    assert [one["run"] for one in told] == paths
    assert told[0] | kept(told[0]) == {**told[0], **vars(kdcache.cost(paths[0])), "inputs": [MAPS[0]], **kept(told[0])}
    wrong = CliRunner().invoke(main, ["cost", paths[0], "--source", str(videos / "v9.mp4")])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)


def kept(one):
    return {name: one[name] for name in ("seconds", "flow_seconds", "device")}


def test_a_comparison_has_the_section(runs, videos, tmp_path):
    rows = {"RGB": {"network": "rgb"}, "two streams": {"network": "two-stream"}}
    call = {"shards": videos / "out", "rows": rows, "seeds": 1, "tune": 0, "out": tmp_path / "table"}
    options = {k: v for k, v in RELATION.items() if k != "student"}
    plain = kdcache.ablate("relation", **call, **options)
    header = "| row | parameters (M) | multiply-adds (G) | flow fields |"
    assert f"Cost of an answer\n\n{header}\n" in plain.text
    fields = [line.split(" | ")[3] for line in plain.text.partition(header)[2].splitlines()[2:4]]
    assert fields == ["0 |", f"{FRAMES} |"]
    timed = kdcache.ablate("relation", **call, source=videos / "v3.mp4", **options)
    assert "| flow fields | latency (ms) | of it flow |" in timed.text
    assert "(v3.mp4 on cpu)" in timed.text
    table = pd.read_csv(tmp_path / "table" / "cost.csv")
    assert (table["seconds"] > table["flow_seconds"]).all()
    assert (table["flow_seconds"] > 0).tolist() == [False, True]
    assert markdown(conclude(tmp_path / "table")) == timed.text  # times stay


def test_a_cost_that_is_not_known_leaves_the_report_whole(runs, videos, tmp_path):
    call = {"shards": videos / "out", "rows": {"RGB": {"network": "rgb"}, "flow": {"network": "flow"}}, "seeds": 1}
    options = {k: v for k, v in RELATION.items() if k != "student"}
    with pytest.raises(OptionError, match=r"v9\.mp4: there is no such file to answer for"):
        kdcache.ablate("relation", **call, out=tmp_path, source=videos / "v9.mp4", **options)
    kdcache.ablate("relation", **call, tune=0, out=tmp_path, **options)
    assert markdown(conclude(tmp_path, videos / "v9.mp4")).count("v9.mp4: no such file") == 1
    recipes = unsealed(tmp_path / "flow" / "seed-0" / "recipes.json")
    recipes.write_text(recipes.read_text().replace('"sampling"', '"forgotten"'))
    (tmp_path / "cost.csv").write_text("row\nRGB\n")
    text = markdown(conclude(tmp_path))
    assert "| flow | – | – | – |" in text
    assert "– flow: i3d-flow/mixed4a: what computing it takes is not known, for its recipe lacks 'sampling'." in text


def test_numbers_of_the_table():
    costs = pd.DataFrame(
        {
            "row": ["a", "b", "c"],
            "parameters": [12_345_678, 12_345, None],
            "multiply_adds": [4_560_000_000, 0, None],
            "flow_fields": [16, 0, None],
            "seconds": [0.25, 0.01, None],
            "flow_seconds": [0.2, 0.0, None],
            "device": ["cpu", "cpu", None],
            "source": ["v.mp4", "v.mp4", None],
            "problem": ["", "", "Because."],
        }
    ).astype(dict.fromkeys(("parameters", "multiply_adds", "flow_fields"), "Int64"))
    lines = cost_section(costs)
    assert lines[4:7] == [
        "| a | 12.346 | 4.560 | 16 | 250.0 | 80 % |",
        "| b | 0.012 | 0.000 | 0 | 10.0 | 0 % |",
        "| c | – | – | – | – | – |",
    ]
    assert lines[-1] == "– c: Because."


def test_a_stopwatch_hears_of_parts_inside_it_alone():
    with part("a"):
        pass
    with stopwatch() as outer:
        with part("a"):
            pass
        with stopwatch() as inner:
            with pytest.raises(ValueError, match="b"), part("b"):
                raise ValueError("b")
    with part("c"):
        pass
    assert sorted(outer) == ["a", "b"]
    assert list(inner) == ["b"]
    assert inner["none"] == 0


def test_a_source_that_cannot_be_read_is_refused_before_anything_trains(videos, tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n")
    call = {"shards": videos / "out", "rows": {"RGB": {"network": "rgb"}}, "seeds": 1, "tune": 0}
    with pytest.raises(SourceError, match=r"table\.csv: not a video that can be opened"):
        kdcache.ablate("relation", source=tmp_path / "table.csv", out=tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()
