"""One process of ``egocentric.py``: a training step, or an answer, from one source of inputs, whenever it is told to.

``python benchmarks/egocentric_part.py JSON`` builds what the JSON names, answers ``{}`` when it is ready, and each line
on its standard input (``turn N``, ``parts``, ``memory``) with one line of JSON on its standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import kdcache
from kdcache.data.frames import CachedFrames
from kdcache.data.inputs import bind
from kdcache.data.loader import Plan, common_views, feed, in_order, shuffled
from kdcache.data.open import StreamPool, open_streams
from kdcache.data.stream import Reader
from kdcache.data.training_data import TrainingData
from kdcache.demo.scene import FPS, FRAMES, make_dataset
from kdcache.engine.freezing import frozen_but, set_train_mode
from kdcache.manifest import validate
from kdcache.methods import method
from kdcache.methods.contract import Batch, BatchSource, Input, InputStream, Segment, Stage
from kdcache.options import build
from kdcache.recipe import Recipe
from kdcache.runs.config import RunSettings
from kdcache.runs.online.clip import CLIP, SourceClip, spans_of
from kdcache.runs.prepare import prepare
from kdcache.runs.requirements import extraction_calls
from kdcache.store import Cache
from kdcache.streams import view_names
from kdcache.streams.base import Stream
from kdcache.streams.registry import restore
from kdcache.streams.rgb import RgbStream

VIEWS = ("centre", "tl@0.875-flip")  # of the layer-3 maps: two of the papers' ten, which decide no time of a step
FROM_FRAMES = {"resnet34/layer3": ("rgb", 1), "resnet34-flow/layer3": ("flow", 3)}
"""Layer-3 maps → what they are computed from, and how many fields make up a frame."""


class Sources:
    """A cache's clips, of which everything is computed from the video when it is asked for, and nothing kept."""

    def __init__(self, cache: Cache, root: Path, device: str) -> None:
        self.path, self.clips, self.streams, self.root, self.device = (
            cache.path,
            cache.clips,
            cache.streams,
            root,
            device,
        )
        weights = {name.partition("/")[0]: "random:0" for name in cache.streams if "/" in name}
        restored = [restore(name, cache.recipe(name), weights) for name in cache.streams]
        self._streams: list[Stream] = [
            replace(s, quality=None) if isinstance(s, RgbStream) else s for s in restored
        ]  # no JPEG files are made and decoded again
        self._cache, self._rows = cache, cache.clips.set_index("clip_id").to_dict("index")

    def recipe(self, stream: str) -> Recipe:
        return self._cache.recipe(stream)

    def shape(self, stream: str) -> tuple[int, ...]:
        return self._cache.shape(stream)

    def dtype(self, stream: str) -> np.dtype[Any]:
        return self._cache.dtype(stream)

    def indexed(self, stream: str) -> Any:
        return self._cache.indexed(stream)

    def read(self, stream: str, clip_ids: Sequence[str], view: int | None = None, out: Any = None) -> Any:
        raise AssertionError(f"{stream} is computed from frames")

    def length(self, stream: str, clip_id: str) -> int:
        with self._clip(clip_id) as clip:
            return clip.length(stream, CLIP)

    def frames(self, stream: str, clip_ids: Sequence[str]) -> list[Any]:
        with self._clip(clip_ids[0]) as clip:
            return clip.frames(stream, [CLIP])

    def read_frames(self, stream: str, clip_id: str, frames: Any) -> Any:
        with self._clip(clip_id) as clip:
            return clip.read_frames(stream, CLIP, frames)

    def _clip(self, clip_id: str) -> SourceClip:
        row = self._rows[clip_id]
        spans = spans_of(
            self._streams, self.root / row["source"], None, float(row["start_s"]), float(row["stop_s"]), None
        )
        return SourceClip(self._streams, spans, self.device)


class Recomputed(CachedFrames):
    """Layer-3 maps that are not cached: a batch's frames, cut as the maps' view was, pass through the frozen layers."""

    net: Any
    autocast: Any

    def to_device(self, fetched: Tensor) -> Tensor:
        """float32 ``[B, T, 256, h, w]``, in the trainer's precision."""
        with torch.no_grad(), self.autocast():
            x = self.net.prepare(fetched.to(self.device))
            return self.net.features(x, "layer3").float()  # type: ignore[no-any-return]


def recomputed(opened: TrainingData, reader: Reader, name: str, frames: int) -> Recomputed:
    """The stream of maps ``name`` without a cache of them."""
    recipe, data = opened.recipes[name], opened.data
    source, stack = FROM_FRAMES[name]
    views = recipe["views"]
    segment = Segment(frames=frames, size=views["size"], resize=views["resize"], stack=stack, augmentations=0)
    stream = Recomputed(
        reader, source, data.clip_ids, segment, data.seed, data.device, names=view_names(recipe), follows=name
    )
    stream.net = kdcache.backbones.build(recipe["backbone"]["name"], "random:0").to(data.device).eval()
    stream.autocast = data.autocast
    return stream


def live(opened: TrainingData, reader: Reader, inputs: Sequence[Input], frames: int) -> dict[str, InputStream]:
    """All inputs from a reader: frames, flow and motion maps as it gives them, layer-3 maps computed from those."""
    pool = StreamPool()
    pool.open(0)
    data = opened.data
    bindings = bind(reader, inputs, opened.resolved["stream"])
    streams = open_streams(reader, bindings, list(data.clip_ids), data.seed, data.device, pool)
    for binding in bindings:
        if binding.inputs[0].segment is None:
            (name,) = binding.streams
            streams |= {one.name: recomputed(opened, reader, name, frames) for one in binding.inputs}
    return streams


class Part:
    """A stage, or with ``stage`` None a network that answers, whose inputs come from

    ``cache``: as the method reads them; ``frames``: layer-3 maps computed on the fly from cached frames; ``video``:
    everything computed from the videos.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.batch, self.steps = job["batch"], job["steps"]
        module, folder = method(job["method"]), Path(job["folder"])
        wanted = build(module.Options, job["options"])
        settings = RunSettings(method=job["method"], shards=str(folder / "cache"), device="cpu", memory_fraction=0)
        opened = prepare(settings, wanted)
        self.options = options = module.resolve(wanted, opened.data)
        inputs = [one for one in module.inputs(options) if job["stage"] or one.when == "always"]
        if not job["stage"]:
            opened = prepare(settings, options, training=False)
        self.data, streams = opened.data, dict(opened.data.inputs)
        if job["source"] != "cache":
            cache = Cache(folder / "cache")
            reader: Reader = cache if job["source"] == "frames" else Sources(cache, folder / "data", "cpu")
            streams = live(opened, reader, inputs, options.frames)
        self.stage: Stage | None = None
        if job["stage"]:
            self.stage = next(s for s in module.stages(options, self.data) if s.name == job["stage"])
            train = self.stage.train
            read = {name: (streams[name], rows) for name, (_, rows) in train.inputs.items()}
            self.source, self.module = replace(train, inputs=read), self.stage.module
        else:
            predictor = module.predictor(options, self.data)
            rows = torch.arange(len(self.data.clip_ids))
            self.source = BatchSource({name: (streams[name], rows) for name in predictor.inputs})
            self.module, self.predict = predictor.module.eval(), predictor.predict

    def turn(self, number: int) -> dict[str, Any]:
        """One turn: seconds a step; of answers seconds a clip, and of each part."""
        if self.stage is None:
            return self._answer(number)
        with self._training():
            plan, started = self._plan(number), time.perf_counter()
            for batch in feed(self.source, plan, self.data.device):
                self._step(batch)
            return {"seconds": (time.perf_counter() - started) / len(plan)}

    def _plan(self, number: int) -> Plan:
        rng = np.random.default_rng(number)
        return shuffled(self.source, self.batch, common_views(self.source), rng)[: self.steps]

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        assert self.stage is not None
        assert self.stage.optimizer is not None
        with frozen_but(self.module, self.stage.optimizer):
            set_train_mode(self.module, self.stage.optimizer)
            yield

    def _step(self, batch: Batch) -> None:
        """One step of the loop, without its bookkeeping."""
        assert self.stage is not None
        assert self.stage.optimizer is not None
        with self.data.autocast():
            loss = torch.stack(list(self.stage.losses(batch).values())).sum()
        self.stage.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.stage.optimizer.step()

    def _answer(self, number: int) -> dict[str, Any]:
        """An answer as ``kdcache.predict`` gives it, but that the networks have been built before."""
        ((rows, views),) = in_order(self.source, 1)[number % len(self.source) :][:1]
        taken: dict[str, float] = {}

        def timed(name: str, do: Any) -> Any:
            started = time.perf_counter()
            result = do()
            taken[name] = taken.get(name, 0.0) + time.perf_counter() - started
            return result

        batch: Batch = {}
        for name, (stream, at) in self.source.inputs.items():
            kind = "flow" if "flow" in name else "frames"
            fetched = timed(kind, lambda: stream.fetch(at[rows], views, at[rows]))  # noqa: B023
            batch[name] = timed("network", lambda: stream.to_device(fetched))  # noqa: B023
        with torch.no_grad(), self.data.autocast():
            timed("network", lambda: self.predict(batch))
        return {"seconds": sum(taken.values()), "parts": taken}

    def parts(self) -> dict[str, Any]:
        """Where the time of a step goes, and how many multiply-adds it needs."""
        plan = self._plan(0)[:1]
        started = time.perf_counter()
        (batch,) = feed(self.source, plan, self.data.device)
        loader = time.perf_counter() - started
        frames = sum(len(index) for index, _ in plan) * self.options.frames
        assert self.stage is not None
        with self._training():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
                self._step(batch)
            with FlopCounterMode(display=False) as forward:
                self.stage.losses(batch)
            with FlopCounterMode(display=False) as both:
                self._step(batch)
        frozen = 0.0
        for stream, rows in self.source.inputs.values():
            if isinstance(stream, Recomputed):
                fetched = stream.fetch(rows[plan[0][0]], plan[0][1], rows[plan[0][0]])
                with FlopCounterMode(display=False) as layers:
                    stream.to_device(fetched)
                frozen += layers.get_total_flops() / 2e9 / frames
        ahead, total = (c.get_total_flops() / 2e9 / frames for c in (forward, both))
        adds = {"frozen layers": frozen, "forward": ahead, "backward": total - ahead}
        return {"ms": {"loader, alone": 1000 * loader} | _shares(seen), "G multiply-adds a frame": adds}

    def memory(self) -> dict[str, Any]:
        """Peak of the process in MiB."""
        return {"MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _shares(seen: torch.profiler.profile) -> dict[str, float]:
    """Milliseconds of a profiled step by part: convolutions by the shape of their kernels, the optimiser, the rest."""
    ms: dict[str, float] = {}
    for event in seen.key_averages(group_by_input_shape=True):
        place = {"aten::conv2d": 1, "aten::convolution_backward": 2}.get(event.key)
        if place is not None:
            out, channels, *_ = event.input_shapes[place]
            way = "forward" if place == 1 else "backward"
            part = "ConvLSTM" if out == 2048 else "layer 4" if out == 512 else "other convolutions"
            name = f"{part}, {way}" if channels in (512, 256) or part == "other convolutions" else "other convolutions"
        elif event.key.startswith("Optimizer.step"):
            name = "optimiser"
        else:
            name = "rest"
        own = event.self_cpu_time_total if name == "rest" else event.cpu_time_total
        if name == "rest" and event.key.startswith(("aten::mkldnn_conv", "aten::_convolution", "aten::convolution")):
            continue
        ms[name] = ms.get(name, 0.0) + own / 1000
    whole = sum(e.self_cpu_time_total for e in seen.key_averages()) / 1000
    ms["rest"] = whole - sum(v for k, v in ms.items() if k != "rest")
    return ms


def make_cache(job: dict[str, Any]) -> dict[str, Any]:
    """Videos, and a cache of what a method's stages read, with the frames of all that is recomputed; its seconds."""
    folder = Path(job["folder"])
    rows = make_dataset(folder / "data", 1, 0).drop_duplicates("source").head(job["clips"] + 1)
    table = validate(
        pd.DataFrame(
            {
                "clip_id": [f"clip-{n}" for n in range(len(rows))],
                "source": rows["source"],
                "start_s": 0.0,
                "stop_s": FRAMES / FPS,
                "label": [n % 2 for n in range(len(rows))],
                "split": ["train"] * job["clips"] + ["test"] * (len(rows) - job["clips"]),
            }
        )
    )
    names: dict[str, None] = {"rgb": None}
    for options in job["options"]:
        for call in extraction_calls(job["method"], **options):
            names |= dict.fromkeys(call.streams)
            settings: dict[str, Any] = call.settings | {"views": VIEWS, "short_side": job["short_side"]}
    taken: dict[str, Any] = {}
    for name in names:
        weights = {name.partition("/")[0]: "random:0"} if "/" in name else None
        of = {k: v for k, v in settings.items() if "/" in name or k == "short_side"}
        seconds = []
        for count in (1, len(table)):  # the first clip alone pays for what is compiled and built
            started = time.perf_counter()
            report = kdcache.extract(
                table.head(count), folder / "data", folder / "cache", [name], weights, device="cpu", bar=False, **of
            )
            assert not report.failures, report
            seconds.append(time.perf_counter() - started)
        taken[name] = seconds[1] / (len(table) - 1) / (len(VIEWS) if "/" in name else 1)
    return {"seconds a clip (of maps: and view)": taken}


def describe(job: dict[str, Any]) -> dict[str, Any]:
    """Epochs and batch size of each stage, by the paper."""
    part = Part(job | {"stage": None, "source": "cache", "batch": 1, "steps": 1})
    settings = RunSettings(method=job["method"], shards=str(Path(job["folder"]) / "cache"), device="cpu")
    opened = prepare(settings, part.options)
    return {
        stage.name: {"epochs": stage.epochs, "batch": stage.batch_size}
        for stage in method(job["method"]).stages(part.options, opened.data)
    }


def main() -> None:
    """Serve the parent until it closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints goes to standard error

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    if job["do"] != "serve":
        say({"make": make_cache, "describe": describe}[job["do"]](job))
        return
    part = Part(job)
    say({})
    for line in sys.stdin:
        command, *numbers = line.split()
        say(getattr(part, command)(*map(int, numbers)))


if __name__ == "__main__":
    main()
