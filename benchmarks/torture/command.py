"""The command: runs a class, prints its table, stores it with where and how it was measured."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import shutil
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # heads here are tiny, and children are forked: no threads before that

import common
from torture.cases import HEAD, Table, line

CLASSES = ("kills", "bits", "hostile", "concurrency", "disk", "videos")
RESULTS = common.RESULTS / "torture.json"


def main() -> None:
    """Parse the command line, run, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("name", metavar="CLASS", choices=[*CLASSES, "table"], help=f"{', '.join(CLASSES)}; or table")
    parser.add_argument("--count", type=int, help="cases; default: those of the full run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; the same call goes on")
    parser.add_argument("--work", type=Path, default=Path("torture-work"), help="folder for copies and outcomes")
    parser.add_argument("--fresh", action="store_true", help="forget the outcomes of earlier calls")
    parser.add_argument("--write", action="store_true", help=f"store the table in {RESULTS.name}")
    options = parser.parse_args()
    if options.name == "table":
        print(markdown(stored()))
        return
    module = importlib.import_module(f"torture.{options.name}")
    folder = (options.work / f"{options.name}-{options.seed}").resolve()
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    print(f"{module.ABOUT}\n{HEAD}", flush=True)
    count = module.COUNT if options.count is None else options.count
    table: Table = module.run(count, options.seed, options.seconds, folder)
    print_table(table)
    print(f"{time.monotonic() - began:.0f} s")
    if options.write:
        numbers = ["--count", str(count), "--seed", str(options.seed)]  # that alone decides what is tried
        store(table, command=shlex.join(["python", "-m", "benchmarks.torture", options.name, *numbers, "--write"]))


def print_table(table: Table) -> None:
    """The class, then every kind of case."""
    print(f"\n{HEAD}\n{line(table.name, table.to_json())}\n")
    for kind, counts in table.kinds().items():
        print(f"  {kind:48} " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    for name, note in table.notes.items():
        print(f"  {name}: {json.dumps(note, ensure_ascii=False)}")


def stored() -> dict[str, Any]:
    """Class → what was stored of its last run."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def store(table: Table, command: str) -> None:
    """Put a class's table in place of its last one."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    measured = {"date": date.today().isoformat(), "commit": commit, "command": command, "machine": common.machine()}
    RESULTS.parent.mkdir(exist_ok=True)
    content = dict(sorted({**stored(), table.name: {**table.to_json(), **measured}}.items()))
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def markdown(content: dict[str, Any]) -> str:
    """The stored tables, as docs/reliability.md shows them."""
    lines = ["| class | tried | survived | silent | failed | slowest | peak memory | commit |", "| --- " * 8 + "|"]
    for name in (name for name in CLASSES if name in content):
        one = content[name]
        cells = [f"{one[column]:,}" for column in ("tried", "survived", "silent", "failed")]
        cells += [f"{one['slowest_s']:.1f} s", f"{one['peak_bytes'] / 1e6:,.0f} MB", one["commit"][:7]]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
