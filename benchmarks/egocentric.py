"""What the cache saves egocentric methods: ``python benchmarks/egocentric.py [--quick] [--only METHOD …] [--write]``.

For each stage the time of a training step (loader, losses, backward, optimiser) (a) from the cache, (b) with its frozen
layers computed on the fly from cached frames, (c) with nothing cached: the video decoded, and flow, motion maps and
frozen layers computed. Each is a process of its own, which gives its peak of memory; they take turns, a b c a b c …, so
that drift of the machine hits all alike. A ratio is the median over turns of b / a, with its least and largest value.

Then what a whole schedule of GTEA61 would take, extrapolated, and how long one clip's answer takes from the video file:
networks that see RGB alone beside those that need TV-L1. Clips are rendered, weights random. Of each stage on layer-3
maps also where the time of (a) goes, and the multiply-adds of its frozen and of its trained part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, write_results

PART = Path(__file__).with_name("egocentric_part.py")
GTEA61_TRAIN, GTEA61_CLIPS, VIEWS = 341, 457, 10  # clips of which a split trains, of all, and cached views of maps
SOURCES = {"a": "cache", "b": "frames", "c": "video"}

FRAMES = {"pmrd": 20, "imprint": 7, "egornn": 25}
MAPS = "abc"  # a stage that reads layer-3 maps
SEEN = "ac"  # one that reads frames
LIGHT = {"light": True}
FED = {"feedback": "layer3"}
CASES: dict[str, list[tuple[str, dict[str, Any], str, int]]] = {  # stage, options, variants, clips in a batch
    "pmrd": [
        ("rgb-1", {}, MAPS, 2),
        ("rgb-2", {}, MAPS, 2),
        ("flow", {}, SEEN, 1),
        ("joint", {}, SEEN, 1),
        ("hallucination", {}, SEEN, 1),
        ("student", {}, SEEN, 1),
        ("flow", LIGHT, MAPS, 2),
        ("joint", LIGHT, MAPS, 2),
        ("hallucination", LIGHT, MAPS, 2),
        ("student", LIGHT, MAPS, 2),
    ],
    "imprint": [
        ("stage1", {}, MAPS, 4),
        ("stage2", {}, MAPS, 4),
        ("stage3", {}, SEEN, 4),
        ("stage3", FED, MAPS, 4),
    ],
    "egornn": [("flow", {}, SEEN, 2), ("joint", {}, MAPS, 2)],  # its RGB stages are PMRD's
}
ANSWERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "pmrd": [("PMRD, RGB + hallucination", {}), ("PMRD's step 2, RGB + TV-L1", {"network": "two-branch"})],
    "imprint": [("motion imprinting, RGB", {})],
    "egornn": [
        ("Ego-RNN, RGB", {"network": "rgb"}),
        ("Ego-RNN joint, RGB + TV-L1 without camera motion", {}),
        ("Ego-RNN joint, RGB + TV-L1", {"flow": "flow"}),
    ],
}
PAIRS = [
    ("PMRD's step 2, RGB + TV-L1", "PMRD, RGB + hallucination"),
    ("Ego-RNN joint, RGB + TV-L1", "Ego-RNN, RGB"),
    ("Ego-RNN joint, RGB + TV-L1", "motion imprinting, RGB"),
]


class Process:
    """One part in a process of its own."""

    def __init__(self, job: dict[str, Any]) -> None:
        command = [sys.executable, "-W", "ignore", str(PART), json.dumps(job)]
        environment = os.environ | {"KINETO_LOG_LEVEL": "5"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.command = command

    def heard(self) -> dict[str, Any]:
        """Its next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with {self.process.wait()}: {' '.join(map(repr, self.command))}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, text: str) -> dict[str, Any]:
        """Its answer to a command."""
        assert self.process.stdin is not None
        print(text, file=self.process.stdin, flush=True)
        return self.heard()

    def close(self) -> None:
        """It ends when nothing more can come."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def turns_of(jobs: dict[str, dict[str, Any]], turns: int) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Process]]:
    """What each job answers in each turn, after one that does not count; the processes are still open."""
    processes = {name: Process(job) for name, job in jobs.items()}
    for process in processes.values():
        process.heard()
    for process in processes.values():
        process.ask("turn 0")
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for turn in range(1, turns + 1):
        for name, process in processes.items():
            taken[name].append(process.ask(f"turn {turn}"))
    return taken, processes


def ratio(over: list[float], under: list[float]) -> list[float]:
    """Median, least and largest ratio of the turns."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return [round(f(each), 2) for f in (statistics.median, min, max)]


def measure_stage(job: dict[str, Any], variants: str, frames: int, turns: int) -> dict[str, Any]:
    """The row of one stage; ``frames`` of a batch."""
    taken, processes = turns_of({v: job | {"do": "serve", "source": SOURCES[v]} for v in variants}, turns)
    seconds = {v: [each["seconds"] for each in of] for v, of in taken.items()}
    memory = {v: round(process.ask("memory")["MiB"]) for v, process in processes.items()}
    found = {v: process.ask("parts") for v, process in processes.items() if v != "c" and "b" in variants}
    for process in processes.values():
        process.close()
    median = {v: statistics.median(of) for v, of in seconds.items()}
    row: dict[str, Any] = {
        "clips in a batch": job["batch"],
        "ms a step": {v: round(1000 * s) for v, s in median.items()},
        "ms a frame": {v: round(1000 * s / frames, 1) for v, s in median.items()},
    }
    row |= {f"{v} / a, median, least, most": ratio(of, seconds["a"]) for v, of in seconds.items() if v != "a"}
    row["peak memory, MiB"] = memory
    if found:
        adds = {k: round(v, 2) for k, v in found["b"]["G multiply-adds a frame"].items()}
        trained = adds["forward"] + adds["backward"]
        row["G multiply-adds a frame"] = adds
        row["b / a, if time were multiply-adds"] = round(1 + adds["frozen layers"] / trained, 2)
        row["where a's time goes, ms"] = {k: round(v) for k, v in found["a"]["ms"].items()}
    return row


def measure_answers(jobs: dict[str, dict[str, Any]], turns: int) -> dict[str, Any]:
    """Seconds of one clip's answer by each network, and two-stream / RGB alone."""
    taken, processes = turns_of(jobs, turns)
    for process in processes.values():
        process.close()
    seconds = {name: [each["seconds"] for each in of] for name, of in taken.items()}
    found: dict[str, Any] = {}
    for name, of in taken.items():
        whole = statistics.median(seconds[name])
        shares = {
            part: round(statistics.median(each["parts"][part] / each["seconds"] for each in of), 3)
            for part in of[0]["parts"]
        }
        found[name] = {"seconds a clip": round(whole, 2), "shares": shares}
    for two, one in PAIRS:
        if two in seconds and one in seconds:
            found[f"{two} / {one}, median, least, most"] = ratio(seconds[two], seconds[one])
    return found


def total(rows: dict[str, Any], schedules: dict[str, Any], filling: dict[str, float], maps: set[str]) -> dict[str, Any]:
    """Hours of a method's default stages on one split of GTEA61, and of filling the cache once: extrapolated."""
    found: dict[str, Any] = {}
    for name, schedule in schedules.items():
        if name in rows:
            clips = schedule["epochs"] * GTEA61_TRAIN
            row = rows[name]
            hours = {v: s * clips / row["clips in a batch"] / 3.6e6 for v, s in row["ms a step"].items()}
            found[name] = {"epochs": schedule["epochs"], "hours": {v: round(h, 1) for v, h in hours.items()}}
    clip = sum(s * (VIEWS if "/" in name else 1) for name, s in filling.items() if name in maps or "/" not in name)
    hours = {v: sum(stage["hours"].get(v, 0.0) for stage in found.values()) for v in "ac"}
    return {
        "stages": found,
        "all stages, hours": {v: round(h, 1) for v, h in hours.items()},
        "filling the cache once, hours": round(GTEA61_CLIPS * clip / 3600, 2),
    }


def measure(
    methods: list[str], stages: list[str], quick: bool, turns: int, threads: int, before: dict[str, Any]
) -> dict[str, Any]:
    """All figures; those of ``before``, results of an earlier call, stay where nothing new is measured."""
    small: dict[str, Any] = {"frames": 4, "size": 64} if quick else {}
    frames = dict.fromkeys(FRAMES, 4) if quick else FRAMES
    clips = max(batch for name in methods for *_, batch in CASES[name])
    how = {
        "threads": threads,
        "side of a crop": small.get("size", 224),
        "frames of a clip (T)": frames,
        "videos": "rendered, 160 x 120, 48 frames, enlarged to the short side of a cache (256)",
        "layer-3 maps in a": "read from the shards for each batch",
        "totals": "extrapolated from the time of a step by clips; one split of GTEA61, 341 training clips; no scoring",
    }
    results: dict[str, Any] = {"how": how, **{key: dict(before.get(key, {})) for key in ("steps", "totals", "answers")}}
    with tempfile.TemporaryDirectory() as folder:
        answers: dict[str, dict[str, Any]] = {}
        for name in methods:
            base = {"threads": threads, "folder": f"{folder}/{name}", "method": name, "steps": 1}
            variants = {json.dumps(options): small | options for _, options, *_ in CASES[name]}
            variants |= {json.dumps(options): small | options for _, options in ANSWERS[name]}
            make = base | {"clips": clips, "short_side": 73 if quick else 256, "options": list(variants.values())}
            made = Process(make | {"do": "make"})
            filling = made.heard()["seconds a clip (of maps: and view)"]
            made.close()
            plan = Process(base | {"do": "describe", "options": small})
            schedules = plan.heard()
            plan.close()
            rows: dict[str, Any] = dict(results["steps"].get(name, {}))
            for stage, options, of, batch in CASES[name]:
                label = " ".join([stage, *(f"{k}={v}" for k, v in options.items())])
                if stages and label not in stages:
                    continue
                job = base | {"options": small | options, "stage": stage, "batch": batch}
                rows[label] = {"turns": turns, **measure_stage(job, of, batch * frames[name], turns)}
                print(name, label, json.dumps(rows[label]), flush=True)
            results["steps"][name] = rows
            results["totals"][name] = total(rows, schedules, filling, {"resnet34/layer3"})
            print(name, json.dumps(results["totals"][name]), flush=True)
            job = base | {"do": "serve", "stage": None, "source": "video", "batch": 1}
            answers |= {label: job | {"options": small | options} for label, options in ANSWERS[name]}
        if not stages or "answers" in stages:
            results["answers"] = measure_answers(answers, turns)
            print("answers", json.dumps(results["answers"]), flush=True)
    return results


def main() -> None:
    """Measure, print, and with ``--write`` store the figures beside the other results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 pixels, 4 frames, one turn: whether it runs")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument(
        "--stages", nargs="+", default=[], help="these rows alone, such as 'flow light=True' or answers"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help="add the figures to results/egocentric.json")
    given = parser.parse_args()
    stored = RESULTS / "egocentric.json"
    before = json.loads(stored.read_text())["results"] if given.write and not given.quick and stored.exists() else {}
    turns = 1 if given.quick else given.turns
    found = measure(given.only, given.stages, given.quick, turns, given.threads, before)
    if given.write:
        write_results("egocentric", found)


if __name__ == "__main__":
    main()
