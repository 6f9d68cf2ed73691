"""Hostile text files: tables, TOML and JSON with cells and structures that nobody expects."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

from torture.damage import damaged

CELLS = [
    "", " ", "nan", "inf", "-1", "0", "1e308", "-1e308", "1e400", "9" * 400, "1" + "0" * 30, "٣", "１２", "0x10", "1_0",
    "=cmd|'/c calc'!A1", "@SUM(1)", "+1", '=HYPERLINK("http://x")', "../../../etc/passwd", "/etc/passwd", "/dev/zero",
    "/dev/stdin", "..", ".", "a\x00b", "a" * 100_000, "é\u202e\ufeff", "\n", '"', "True", "1.5", "None", "[]", "{}",
    "[" * 3000, "shard-99999.h5", "../out/shard-00000.h5", "/etc/hostname", "shard-00000.h5", "pipe", "loop", "outside",
    "train", "test", "auto", "rgb", "a,b", "NaT", "-0", "\udcff",
]  # fmt: skip
NUMBERS: list[Any] = [0, -1, 1, 2, 10**6, 10**30, -(10**30), 0.5, 1e-300, 1e308, float("nan"), float("inf"), True]
VALUES: list[Any] = [*NUMBERS, None, "", "auto", "x", [], {}, [1, 2], [[]], {"a": 1}, "a" * 10_000]


def spoil_bytes(path: Path, rng: random.Random) -> str:
    """Damage without regard to what the file holds."""
    kind = rng.choice(("damaged", "damaged", "empty", "noise", "utf-16", "repeated", "nul", "latin"))
    data = path.read_bytes()
    if kind == "damaged":
        _, data = damaged(data, rng)
    elif kind == "empty":
        data = b""
    elif kind == "noise":
        data = rng.randbytes(rng.randrange(1, 5000))
    elif kind == "utf-16":
        data = data.decode(errors="replace").encode("utf-16")
    elif kind == "repeated":
        data *= 2
    elif kind == "nul":
        data = bytes(len(data))
    else:
        data = data.replace(b"e", b"\xe9")
    path.write_bytes(data)
    return kind


def spoil_csv(path: Path, rng: random.Random) -> str:
    """Change cells, columns or rows of a table, or its bytes."""
    kind = rng.choice(
        ("cell",) * 8 + ("rename", "drop", "twice", "ragged", "quote", "wide", "no rows", "row") + ("bytes",) * 3
    )
    if kind == "bytes":
        return spoil_bytes(path, rng)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or not rows[0]:
        return spoil_bytes(path, rng)
    column, row = rng.randrange(len(rows[0])), rng.randrange(1, max(2, len(rows)))
    if kind == "cell" and len(rows) > 1:
        rows[row][column] = rng.choice(CELLS)
    elif kind == "rename":
        rows[0][column] = rng.choice([*CELLS, rows[0][0], rows[0][-1]])
    elif kind == "drop":
        rows = [[cell for i, cell in enumerate(one) if i != column] for one in rows]
    elif kind == "twice":
        rows = [[*one, one[column]] for one in rows]
    elif kind == "ragged" and len(rows) > 1:
        rows[row] = rows[row][: rng.randrange(len(rows[row]) + 1)] + ["x"] * rng.randrange(3)
    elif kind == "wide":
        rows = [[*one, *(f"c{i}" for i in range(3000))] for one in rows]
    elif kind == "no rows":
        rows = rows[:1]
    elif kind == "row":
        rows.append(list(rng.choice(rows)))
    text = io.StringIO()
    csv.writer(text, lineterminator=rng.choice(("\n", "\n", "\r\n", "\r"))).writerows(rows)
    content = text.getvalue() + ('"unclosed' if kind == "quote" else "")
    path.write_bytes(content.encode(errors="surrogateescape"))
    return kind


def spoil_json(path: Path, rng: random.Random) -> str:
    """Change a value, drop it, or the bytes; its own digest is taken off, as in files of earlier versions."""
    content = json.loads(path.read_text())
    if rng.random() < 0.3 or not isinstance(content, dict):
        return spoil_bytes(path, rng)
    content.pop("seal", None)
    kind = _change(content, rng)
    path.write_text(
        rng.choice(("[" * 100_000, "1e999", '"x"', "[]", "null")) if kind == "whole" else json.dumps(content)
    )
    return kind


def spoil_toml(path: Path, rng: random.Random) -> str:
    """Change a value or drop it, without its own digest; or the bytes."""
    import tomllib

    import tomli_w

    if rng.random() < 0.3:
        return spoil_bytes(path, rng)
    content = tomllib.loads(path.read_text())
    kind = _change(content, rng)
    try:
        path.write_text("a = " + "[" * 50_000 if kind == "whole" else tomli_w.dumps(content))
    except (TypeError, ValueError):  # no TOML: None
        return spoil_bytes(path, rng)
    return kind


def _change(content: dict[str, Any], rng: random.Random) -> str:
    """Change one value somewhere below; what was done."""
    kind = rng.choice(("value",) * 6 + ("drop", "drop", "add", "whole"))
    place: Any = content
    while True:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        below = place[key]
        if not isinstance(below, (dict, list)) or not below or rng.random() < 0.2:
            break
        place = below
    if kind == "value":
        place[key] = rng.choice(VALUES)
    elif kind == "drop":
        del place[key]
    elif kind == "add" and isinstance(place, dict):
        place[rng.choice(["x", "", "backbone", "method", "options", "../x"])] = rng.choice(VALUES)
    return kind
