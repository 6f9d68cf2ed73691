"""Large CSV files by their bytes: the cells that Python's parser gives, or none."""

from __future__ import annotations

import csv
import io
import random

import pytest

from kdcache import plain_csv
from kdcache.plain_csv import ListTable, plain_table

CELLS = ["", "a", "clé-01", "  ", "0.1", "x" * 32, "y" * 33, "ß" * 16, "日本", "1e-7", "'=1"]


def parsed(text: str) -> dict[str, list[str]]:
    """The columns of Python's own parser."""
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in header}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_the_cells_are_those_of_a_parser(end, last, monkeypatch):
    monkeypatch.setattr(plain_csv, "_CHUNK", 7)  # so that cells and rows lie across pieces
    monkeypatch.setattr(plain_csv, "_ROWS", 3)
    rng = random.Random(0)
    rows = [["clip_id", "source", "ends"], *([rng.choice(CELLS), rng.choice(CELLS), "z"] for _ in range(50))]
    text = end.join(",".join(row) for row in rows) + end * last
    table, known = plain_table(text.encode()), parsed(text)
    assert table is not None
    assert table.names == list(known)
    assert table.rows == 50
    other = ListTable(known)
    for name in known:
        assert table.texts(name) == known[name]
        for width in (1, 32):
            assert table.fixed(name, width).tolist() == other.fixed(name, width).tolist()
            cells = [cell.encode() for cell in known[name]]
            assert table.fixed(name, width).tolist() == [cell if len(cell) == width else b"" for cell in cells]


def test_columns_that_repeat_themselves_and_numbers():
    rng = random.Random(1)
    shards = [f"shard-{i // 40:05d}.h5" if i % 333 else "" for i in range(20_000)]  # of one length, or none
    words = [rng.choice(["a", "bb", "é"]) if i % 100 == 0 else "" for i in range(20_000)]
    words = [word or words[i // 100 * 100] for i, word in enumerate(words)]
    numbers = [str(i % 40) if i % 77 else "" for i in range(20_000)]
    lines = zip(shards, words, numbers, shards, strict=True)
    table = plain_table(("a,b,n,last\n" + "".join(f"{','.join(line)}\n" for line in lines)).encode())
    assert table is not None
    assert (table.texts("a"), table.texts("b"), table.texts("n")) == (shards, words, numbers)
    assert table.texts("last") == shards
    assert [table.cell("n", i) for i in (0, 1, 19_999)] == [numbers[i] for i in (0, 1, 19_999)]
    digits = table.digits("n")
    assert digits is not None
    assert digits.tolist() == [int(text) if text else -1 for text in numbers]
    assert table.digits("a") is None


def test_what_is_not_digits_alone_is_no_number():
    for cell in ("3.0", "-1", "+1", " 1", "1234567890", "1_0", "٣"):
        table = plain_table(f"a,b\n1,{cell}\n".encode())
        assert table is not None
        assert table.digits("b") is None


def test_a_header_alone_has_no_rows():
    table = plain_table(b"clip_id,source")
    assert table is not None
    assert table.rows == 0
    assert table.texts("source") == []
    assert table.fixed("source", 32).shape == (0,)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"source\na.mp4\n",  # one column: it may be separated by something else
        b'a,b\n"1",2\n',
        b"a,b\n1,2\n\n3,4\n",
        b"a,b\n1,2\n\n",
        b"\na,b\n1,2\n",
        b"a,b\n1\n2,3,4\n",  # the right number of cells, in rows of other lengths
        b"a,b\n1,2,3\n",
        b"a,b\n1,2\n3",
        b"a,a\n1,2\n",
        b"a,b\n1,\0\n",
        b"a,b\r1,2\r",
        b"a,b\n1,\xff\n",
        b"\xef\xbb\xbfa,b\n1,2\n",
        b"a,b\n1," + b"x" * 100_001 + b"\n",
    ],
)
def test_what_takes_a_parser_is_left_to_one(text):
    assert plain_table(text) is None
