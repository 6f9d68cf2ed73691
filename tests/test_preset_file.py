"""Presets and configurations that are damaged, hostile or made by hand: one sentence with the file and the key."""

from __future__ import annotations

import os
from importlib.resources import files

import pytest

from kdcache.errors import KdcacheError, OptionError
from kdcache.methods import names
from kdcache.options import build
from kdcache.runs import presets
from kdcache.runs.config import load_config
from kdcache.runs.preset_file import read_presets

WHOLE = """[presets.p]
lr = 0.1
[tables.t]
caption = "c"
preset = "p"
rows = [{ name = "r", paper = { top1 = 1.5 } }]
"""
DEEP = "a" + ".a" * 10_000
BYTES = {
    "empty": (b"", "it has no presets"),
    "binary": (bytes(range(256)) * 9, "is damaged"),
    "nul": (bytes(1000), "is damaged"),
    "utf-16": (WHOLE.encode("utf-16"), "is damaged"),
    "cut": (WHOLE.encode()[:-9], "is damaged"),
    "huge": (b"#" * (2**20 + 1), r"1,048,577 bytes"),
    "lists": (b"presets = " + b"[" * 50_000, "nested too deep"),
    "tables": (f"[{DEEP}]\n{WHOLE}".encode(), "nested too deep"),
}
KEYS = {
    "presets": ("[presets.p]\nlr = 0.1", "[presets]\np = 3", r"presets\.p is not a table"),
    "no caption": ('caption = "c"\n', "", r"tables\.t has no caption"),
    "a number for text": ('"c"', "nan", r"tables\.t\.caption is not text"),
    "a preset that is not there": (
        'preset = "p"',
        'preset = "q"',
        r"tables\.t\.preset names 'q'",
    ),
    "a table of itself": ('preset = "p"', 'preset = "p"\nrows_of = "t"', r"rows_of is 't'"),
    "a number that is none": ("1.5", "nan", r"tables\.t\.rows\[1\]\.paper\.top1 is no finite number"),
    "an unknown key": ('name = "r"', 'name = "r", x = 1', r"rows\[1\]\.x names 'x'"),
    "settings of nothing": ("[tables.t]", "[settings.z]\n[tables.t]", r"settings\.z names 'z'"),
}


def test_those_of_the_package_are_whole():
    for name in names():
        presets.tables(name, check=False)
    for file in (files("kdcache") / "presets").iterdir():
        read_presets(file)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_that_are_none(tmp_path, kind):
    data, words = BYTES[kind]
    path = tmp_path / "p.toml"
    path.write_bytes(data)
    with pytest.raises(OptionError, match=rf"p\.toml.*{words}") as caught:
        read_presets(path)
    assert len(str(caught.value)) < 1000
    with pytest.raises(OptionError, match=r"p\.toml"):
        load_config(path)


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_another_form_are_named(tmp_path, kind):
    old, new, words = KEYS[kind]
    path = tmp_path / "p.toml"
    path.write_text(WHOLE.replace(old, new))
    with pytest.raises(OptionError, match=rf"p\.toml: .*{words}"):
        read_presets(path)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "p.toml"
    path.write_bytes(WHOLE.encode("utf-8-sig"))
    assert read_presets(path)["presets"] == {"p": {"lr": 0.1}}


def test_no_plain_file_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(KdcacheError, match="no plain file"):
            read_presets(path)


@pytest.mark.parametrize(
    "line", [f"lr.{DEEP} = 1", f"lr{'.a' * 90} = 1", f'lr = "{"a" * 100_000}"', f"{'x' * 100_000} = 1"]
)
def test_sentences_about_long_and_deep_values_are_short(tmp_path, line):
    path = tmp_path / "config.toml"
    path.write_text(f'method = "early"\n[options]\n{line}\n')
    with pytest.raises(OptionError, match=r"config\.toml") as caught:
        load_config(path)
    assert len(str(caught.value)) < 3000


def test_a_label_share_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('method = "anticipation"\nshards = "x"\n[options]\nlabel_fraction = "x"\n')
    with pytest.raises(OptionError, match="label_fraction='x'"):
        load_config(path)


def test_values_of_options_are_shown_as_before():
    from kdcache.methods.early_options import EarlyOptions

    with pytest.raises(OptionError, match=r"^lr='a': give a number\.$"):
        build(EarlyOptions, {"lr": "a"})
