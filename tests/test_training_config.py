"""Options by name and type: from text, from Python, to TOML and back."""

from __future__ import annotations

import itertools
import tomllib

import pytest

from kdcache.errors import OptionError
from kdcache.methods.anticipation import Options
from kdcache.methods.anticipation_options import AnticipationOptions
from kdcache.methods.early_options import EarlyOptions
from kdcache.methods.options import LabelOptions, TrainOptions
from kdcache.methods.recognition import RecognitionOptions
from kdcache.options import build, to_table
from kdcache.runs.config import RunSettings, parse_set, read_config, write_config


def test_set_is_typed_by_the_options():
    parsed = parse_set(
        "anticipation",
        [
            "lam=0.1",
            "loss_d=both",
            "epochs=3",
            "milestones=1,2",
            "alpha=none",
            "pseudo=false",
            "lr=1",
            "weights=a=b.pt",
        ],
    )
    assert parsed == {
        "lam": 0.1, "loss_d": "both", "epochs": 3, "milestones": (1, 2), "alpha": None, "pseudo": False, "lr": 1.0,
        "weights": "a=b.pt",
    }  # fmt: skip
    assert [type(v) for v in parsed.values()] == [float, str, int, tuple, type(None), bool, float, str]
    assert parse_set("anticipation", ["milestones="]) == {"milestones": ()}
    assert parse_set("anticipation", ["alpha=0", "memory_fraction=1"]) == {"alpha": 0.0, "memory_fraction": 1.0}
    assert parse_set("anticipation", ["hold=1", "tau=2"]) == {
        "memory_fraction": 1.0,
        "tau_s": 2.0,
    }  # as 0.1 called them
    assert parse_set("early", ["tau=2"]) == {"tau": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lambda=1", "Unknown option 'lambda': did you mean 'lam'"),
        ("los_d=both", "did you mean 'loss_d'"),
        ("loss_d=bth", "Unknown value of loss_d: 'bth': did you mean 'both'"),
        ("lam=much", "lam='much': give a number"),
        ("epochs=1.5", "epochs='1.5': give a whole number"),
        ("pseudo=maybe", "pseudo='maybe': give true or false"),
        ("milestones=1,x", "whole numbers such as 15,25"),
        ("alpha=sharp", "give a number or none"),
        ("lam", "write name=value"),
    ],
)
def test_bad_settings_say_what_is_wrong(text, says):
    with pytest.raises(OptionError) as caught:
        parse_set("anticipation", [text])
    assert says in str(caught.value)


def test_values_from_python_are_held_to_the_same_types():
    assert build(Options, {"lam": 2, "milestones": [5]}) == Options(lam=2.0, milestones=(5,))
    for bad in ({"epochs": 2.0}, {"lam": "1"}, {"pseudo": 1}, {"milestones": 3}, {"loss_d": "RA "}, {"epochs": True}):
        with pytest.raises(OptionError):
            build(Options, bad)
    with pytest.raises(OptionError, match="did you mean 'epochs'"):
        build(Options, {"epoch": 3})


def test_configuration_survives_toml(tmp_path):
    settings = RunSettings(method="anticipation", shards="/data/out", seed=3, stream="i3d-rgb/mixed4a")
    options = Options(alpha=0.5, milestones=(), weight_decay=0.0)
    write_config(tmp_path / "config.toml", settings, options, {"held": True})
    assert read_config(tmp_path / "config.toml") == (settings, options, {"held": True})
    stored = tomllib.loads((tmp_path / "config.toml").read_text())
    assert stored["weights"] == "none"
    assert stored["options"] == to_table(options)


@pytest.mark.parametrize(
    "kind", [AnticipationOptions, EarlyOptions, RecognitionOptions, TrainOptions, LabelOptions, RunSettings]
)
def test_every_option_is_documented(kind):
    import ast
    import inspect

    body = ast.parse(inspect.getsource(kind)).body[0].body
    for here, after in itertools.pairwise(body):
        if isinstance(here, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{here.target.id} has no docstring"
