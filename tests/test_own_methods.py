"""Methods of one's own: named by file, import path, entry point or ``register``; never imported because a file says
so; mistakes of their authors named before anything is trained."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import clips_cache
import pytest
from click.testing import CliRunner

import kdcache
from kdcache.cli import main
from kdcache.errors import OptionError
from kdcache.methods import METHODS, load_method, method, names, register, registry
from kdcache.methods.contract import Input
from kdcache.runs.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")
SOURCE = (Path(__file__).parent / "staged_method.py").read_text()


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What a test names is unknown to the next."""
    before, path = dict(METHODS), list(sys.path)
    yield
    METHODS.clear()
    METHODS.update(before)
    registry._OBJECTS.clear()
    registry._entry_points.cache_clear()
    registry._from_file.cache_clear()
    sys.path[:] = path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return clips_cache.cache(tmp_path_factory.mktemp("cache"), train=24, validation=12, test=12)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def package(tmp_path):
    """An importable package that notes when its method is imported."""
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mine.py").write_text(f"{SOURCE}\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n")
    sys.path.insert(0, str(tmp_path))
    yield "own_package.mine"
    for name in ("own_package", "own_package.mine"):
        sys.modules.pop(name, None)


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_file_trains_and_answers_from_the_command_line(shards, file, tmp_path):
    out = tmp_path / "run"
    result = call("train", file, "--shards", shards, "--out", out, "--device", "cpu", "--set", "width=3")
    assert result.exit_code == 0, result.output
    assert 'method = "mine"' in (out / "config.toml").read_text()
    METHODS.pop("mine")
    unknown = call("evaluate", out)
    assert unknown.exit_code == 1
    assert "Unknown method 'mine'" in unknown.output
    assert "named by its file or import path" in unknown.output
    told = call("evaluate", out, "--method", file)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["last"] == Run(out).metrics["last"]
    METHODS.pop("mine")
    again = call("train", "--config", out / "config.toml", "--out", tmp_path / "again", "--method", file)
    assert again.exit_code == 0, again.output
    assert Run(tmp_path / "again").metrics["last"] == Run(out).metrics["last"]


def test_an_import_path_is_imported_when_it_is_named_and_not_by_a_file(shards, package, tmp_path):
    out, imported = tmp_path / "run", tmp_path / "imported"
    run = kdcache.train(package, shards, out=out, device="cpu")
    assert run.settings.method == package
    METHODS.pop(package)
    sys.modules.pop(package)
    imported.unlink()
    with pytest.raises(OptionError, match=r"nothing is imported because a file names it: name it yourself \(--method"):
        Run(out)
    refused = call("train", "--config", out / "config.toml")
    assert refused.exit_code == 1
    assert "nothing is imported because a file names it" in refused.output
    assert not imported.exists()
    assert call("evaluate", out, "--method", package).exit_code == 0
    assert imported.exists()


def test_several_workers_import_it_too(shards, file, tmp_path):
    rows = ["--row", "narrow:width=2", "--row", "wide:width=5"]
    fixed = ["--seeds", "1", "--tune", "0", "--workers", "2", "--device", "cpu"]
    result = call("ablate", file, "--shards", shards, *rows, *fixed, "--out", tmp_path / "ablation")
    assert result.exit_code == 0, result.output
    assert "narrow" in result.output
    assert len(list((tmp_path / "ablation").rglob("metrics.json"))) == 2


def test_a_notebook_registers_an_object(shards, file, tmp_path):
    module = method(load_method(str(file)))
    parts = {name: getattr(module, name) for name in ("Options", "inputs", "resolve", "stages", "predictor")}
    register("from-notebook", SimpleNamespace(**parts))
    assert "from-notebook" in names()
    assert kdcache.train("from-notebook", shards, out=tmp_path / "run", device="cpu").metrics["last"]
    with pytest.raises(OptionError, match="registered as an object of this process, which workers cannot import"):
        kdcache.ablate(
            "from-notebook", shards=shards, grid={"width": [2, 3]}, tune=0, seeds=1, workers=2, out=tmp_path / "a"
        )
    register("by-module", module)
    assert METHODS["by-module"] == str(file.resolve())
    with pytest.raises(OptionError, match="early is a method of kdcache: choose another name"):
        register("early", module)


def test_entry_points_of_packages_have_names(package, monkeypatch):
    point = EntryPoint("packaged", package, registry.GROUP)
    shadowing = EntryPoint("early", package, registry.GROUP)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point, shadowing])
    registry._entry_points.cache_clear()
    assert load_method("packaged") == "packaged"
    assert method("packaged").Options.__module__ == package
    assert method("early").__name__ == "kdcache.methods.early"
    assert names()[-1] == "packaged"


def test_names_that_lead_nowhere(tmp_path, file):
    with pytest.raises(OptionError, match=r"nowhere\.py: there is no such file"):
        load_method("nowhere.py")
    with pytest.raises(OptionError, match=r"no_such\.thing: there is no module 'no_such'; install it, set PYTHONPATH"):
        load_method("no_such.thing")
    with pytest.raises(OptionError, match="did you mean 'early'"):
        load_method("earli")
    load_method(str(file))
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "mine.py"
    other.write_text(SOURCE)
    with pytest.raises(OptionError, match="there is another method 'mine', so give the file another name"):
        load_method(str(other))
    early = tmp_path / "early.py"
    early.write_text(SOURCE)
    with pytest.raises(OptionError, match="there is another method 'early'"):
        load_method(str(early))


MISTAKES = {
    'Input(name="x", axes="ND")': [
        ('Input(name="x", axes="NQ")', "input x has axes 'NQ'; write each letter once, without views"),
        ('Input(name="x", axes="VND")', "input x has axes 'VND'; write each letter once, without views"),
        ('Input(name="x", axes="ND", role="klip")', "input x has role 'klip'; it is one of clip, observed, action"),
        ('Input(name="x", axes="ND", when="never")', "input x is read 'never'; it is always or train"),
        ('Input(name="x", axes="ND", when="train")', "reads every input in training only"),
        ('Input(name="x", axes="ND"), Input(name="x", axes="ND")', "has two inputs 'x'"),
        ('Input(name="y", axes="ND"), Input(name="x", axes="ND", when="train")', "predicts from x, which it reads in"),
        ('"x"', "holds 'x'; it holds kdcache.methods.contract.Input objects"),
    ],
    "def predictor(": [("def predict0r(", "Method wrong lacks predictor: a method provides Options, inputs, resolve")],
    "lr_factor: float = 1.0": [("lr_factor: float", "option lr_factor has no default")],
    "class Options(LabelOptions)": [("class Options", "Options has no target, the column of the labels: derive it")],
    "@dataclass(frozen=True, kw_only=True)\n": [("", "option width|Options has no target|Options is no data class")],
}


@pytest.mark.parametrize(("right", "wrong", "said"), [(a, b, c) for a, found in MISTAKES.items() for b, c in found])
def test_mistakes_are_named_before_training(shards, tmp_path, right, wrong, said):
    assert right in SOURCE
    path = tmp_path / "wrong.py"
    path.write_text(SOURCE.replace(right, wrong))
    if right.startswith("@dataclass"):
        path.write_text(path.read_text().replace("(LabelOptions)", ""))
    with pytest.raises(OptionError, match=said):
        kdcache.train(str(path), shards, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    assert "wrong" not in METHODS or right.startswith("Input")


def test_an_input_says_what_it_accepts():
    assert Input(name="x", axes="ND", also=("TD",)).accepts == ("ND", "TD")
