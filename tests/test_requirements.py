"""``kdcache extract --for METHOD`` computes exactly what the method's stages read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from make_videos import pictures, write

import kdcache
from kdcache.cli import main
from kdcache.errors import OptionError
from kdcache.runs.requirements import extraction_calls


def streams_of(*arguments, **options):
    return [(call.streams, call.settings) for call in extraction_calls(*arguments, **options)]


def test_streams_are_those_of_the_declared_inputs_each_once():
    assert streams_of("anticipation") == [(("i3d-rgb/mixed4a",), {})]
    assert streams_of("early") == [(("tsm/clip",), {"levels": 10})]
    assert streams_of("recognition", backbone="resnet34") == [(("rgb",), {})]
    (call,) = extraction_calls("anticipation")
    assert str(call) == "i3d-rgb/mixed4a for x, x_t (in training only)"
    assert call.in_pairs


def test_presets_of_other_datasets_read_other_streams_videos_and_skeletons_in_calls_of_their_own():
    assert streams_of("early", "ucf101") == [(("tsm/clip",), {"levels": 10})]
    assert streams_of("early", "ntu") == [(("vacnn/pool",), {"levels": 10})]
    assert streams_of("early", "sysu") == [(("tsm/clip",), {"levels": 10}), (("vacnn/pool",), {"levels": 10})]


def test_what_cannot_be_extracted_is_refused():
    with pytest.raises(OptionError, match="did you mean 'ucf101'"):
        extraction_calls("early", "ucf10")
    with pytest.raises(OptionError, match="recognition makes its input x on demand"):
        extraction_calls("recognition", backbone="vacnn")


def test_the_command_fills_a_cache_that_the_method_trains_on(tmp_path, caplog):
    caplog.set_level("INFO", "kdcache")
    for seed, name in enumerate("abcd"):
        write(tmp_path / f"{name}.mp4", pictures(30, seed=seed))
    splits = ["train"] * 2 + ["validation"] * 2
    rows = {"clip_id": list("abcd"), "source": [f"{n}.mp4" for n in "abcd"], "start_s": np.nan, "stop_s": np.nan}
    pd.DataFrame(rows | {"label": [0, 1] * 2, "split": splits}).to_csv(tmp_path / "clips.csv", index=False)
    where = ["--manifest", str(tmp_path / "clips.csv"), "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    small = ["--size", "32", "--weights", "random:0"]
    result = CliRunner().invoke(main, ["extract", *where, "--for", "early", *small])
    assert result.exit_code == 0, result.output
    assert "early reads tsm/clip for x: levels=10" in caplog.messages
    cache = kdcache.Cache(tmp_path / "out")
    assert cache.streams == ["tsm/clip"]
    assert cache.shape("tsm/clip") == (1, 10, 2048)
    run = kdcache.train("early", tmp_path / "out", out=tmp_path / "run", epochs=1, hidden=8, teacher_hidden=4)
    assert run.resolved["stream"] == "tsm/clip"
    for wrong, message in (
        (["--for", "early", "--stream", "rgb"], "--for says which streams"),
        (["--preset", "ntu"], "say which with --for METHOD"),
        (["--for", "anticipation"], "anticipation reads pairs of clips, and the manifest has no column 'pair'"),
    ):
        refused = CliRunner().invoke(main, ["extract", *where, *wrong])
        assert refused.exit_code == 1
        assert message in refused.output
