"""``kdcache import`` and ``kdcache export``: the functions' own options, exit statuses, sentences."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from kdcache import exchange
from kdcache.cli import main
from kdcache.cli.exchange import export_group, import_group
from kdcache.exchange.npy_files import flat_name
from kdcache.manifest import validate, write_manifest
from kdcache.store import Cache

COMMANDS = {
    f"{group.name}_{name}": command
    for group in (import_group, export_group)
    for name, command in group.commands.items()
}


def run(*arguments: Any, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Vectors of two clips in a folder each, and the manifest beside them."""
    for i, clip in enumerate(("bend/daria", "jump/ira")):
        path = tmp_path / "npy" / f"{clip}.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.full((i + 2, 3), i, np.float32))
    rows = [{"clip_id": c, "source": "v.mp4", "start_s": None, "stop_s": None} for c in ("bend/daria", "jump/ira")]
    write_manifest(validate(pd.DataFrame(rows)), tmp_path / "clips.csv")
    return tmp_path


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_the_options_of_its_function(name: str) -> None:
    parameters = inspect.signature(getattr(exchange, name)).parameters
    options = COMMANDS[name].make_context(name, [], resilient_parsing=True).params  # nothing given: the defaults
    options = {"shards" if option == "cache" else option: value for option, value in options.items()}
    assert options.keys() - {"as_json"} == parameters.keys() - {"progress"}
    for option, parameter in parameters.items():
        if option in options and parameter.default is not parameter.empty:
            value = options[option]
            assert (str(value) if isinstance(value, Path) else value) == parameter.default, option


def test_in_and_out_again(features: Path) -> None:
    more = ["--manifest", features / "clips.csv", "-o", features / "out", "--stream", "s", "--origin", "test"]
    said = run("import", "npy", features / "npy", *more)
    assert said.splitlines()[0] == "2 clips: 0 cached already, 2 imported."
    said = run("export", "npy", features / "out", "-o", features / "back", "--stream", "s")
    assert said == f"{features / 'back'}: 2 clips; 2 files written, 0 were there.\n"
    assert (features / "back" / "bend" / "daria.npy").read_bytes() == (features / "npy/bend/daria.npy").read_bytes()
    said = run("export", "webdataset", features / "out", "-o", features / "wds", "--stream", "s")
    assert "2 clips; 1 shards written" in said
    (features / "npy" / "jump" / "ira.npy").unlink()
    assert "1 failed (see " in run("import", "npy", features / "npy", *more, status=3)


def test_an_export_of_0_1_goes_on_under_its_flat_names(features: Path) -> None:
    exchange.import_npy(features / "npy", features / "clips.csv", features / "out", stream="s", origin="test")
    back = features / "back"
    exchange.export_npy(features / "out", back, stream="s")
    for clip in ("bend/daria", "jump/ira"):
        (back / f"{clip}.npy").rename(back / flat_name(clip))
    again = exchange.export_npy(features / "out", back, stream="s")
    assert (again.written, again.there) == (0, 2)
    report = exchange.import_npy(back, back / "manifest.csv", features / "two", stream="s", origin="test")
    assert report.imported == 2
    assert Cache(features / "two").read("s", ["jump/ira"])[0].tolist() == [[1.0] * 3] * 3


def test_without_lmdb_a_sentence_says_what_to_install(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    more = ["--manifest", features / "clips.csv", "--stream", "s", "--origin", "test", "--frames", 2]
    said = run("import", "lmdb", features / "npy", *more, "--key", "{source}_{frame}", status=1)
    assert said == (
        "Error: LMDB files need the package lmdb, which is not installed: run `pip install 'kdcache[lmdb]'`.\n"
    )
    exchange.import_npy(features / "npy", features / "clips.csv", features / "out", stream="s", origin="test")
    assert "kdcache[lmdb]" in run("export", "lmdb", features / "out", "-o", features / "l", "--stream", "s", status=1)
    assert not (features / "l").exists()


def test_mistakes_are_sentences(features: Path) -> None:
    more = ["--manifest", features / "clips.csv", "-o", features / "out", "--stream", "s", "--origin", "test"]
    assert "needs --fps" in run("import", "npy", features / "npy", *more, "--per", "source", status=1)
    assert "cannot be read as HDF5" in run("import", "hdf5", features / "clips.csv", *more, status=1)
    assert "Missing option '--origin'" in run("import", "npy", features / "npy", *more[:-2], status=2)
    assert not (features / "out").exists()
