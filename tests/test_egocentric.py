"""What the egocentric methods share: where branches start from, which maps fit, what decides that stages are shared."""

from __future__ import annotations

import numpy as np
import pytest
import streams_cache
from egocentric_cases import T, data_for, options_of

import kdcache
from kdcache.data.open import open_cache
from kdcache.engine import checkpoint
from kdcache.errors import OptionError
from kdcache.methods import egornn, pmrd
from kdcache.runs.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"frames": 2, "size": 32, "hidden": 8, "device": "cpu", "validation": 0.0}


def cache_of(folder, views: dict[str, list[str]]):
    """Layer-3 maps of RGB and flow, in views of their own."""
    rng, table, streams = np.random.default_rng(0), streams_cache.rows(4, 0, 2), []
    for name, names in views.items():
        maps = streams_cache.features(name, views=names) | {"sampling": {"frames": 2, "fps": None, "anchor": "centre"}}
        maps["views"] |= {"size": 32, "resize": 36}
        streams.append((maps, [rng.random((len(names), 2, 256, 2, 2)).astype(np.float16) for _ in range(len(table))]))
    return streams_cache.write(folder, table, streams)


def test_stages_that_show_other_views_are_not_shared(tmp_path):
    """Beside flow maps of one view, RGB's other views are not read: another training, whatever the options."""
    both = ["centre", "centre-flip"]
    folder = cache_of(tmp_path / "cache", {"resnet34/layer3": both, "resnet34-flow/layer3": ["centre"]})
    lines = dict.fromkeys(("rgb_1", "rgb_2", "flow_branch"), "epochs=2 milestones= batch_size=2")
    lines["joint"] = "epochs=1"
    session, weights = Session(stages=tmp_path / "kept", bars=False), {}
    for name, network in (("two", "two-branch"), ("rgb", "rgb")):
        given = {"light": True, "network": network, **lines, **QUICK}
        run = kdcache.train("pmrd", folder, out=tmp_path / name, session=session, **given)
        weights[name] = (run.path / "rgb-1" / checkpoint.LAST).read_bytes()
    assert weights["two"] != weights["rgb"]
    alone = kdcache.train("pmrd", folder, out=tmp_path / "alone", light=True, network="rgb", **lines, **QUICK)
    assert (alone.path / "rgb-1" / checkpoint.LAST).read_bytes() == weights["rgb"]


def test_only_what_answers_is_kept(tmp_path):
    folder = cache_of(tmp_path / "cache", {"resnet34/layer3": ["centre"]})
    lines = dict.fromkeys(("rgb_1", "rgb_2"), "epochs=1 milestones=")
    given = {"network": "rgb", **lines, **QUICK, "validation": 0.25}
    whole = kdcache.train("pmrd", folder, out=tmp_path / "whole", **given)
    run = kdcache.train("pmrd", folder, out=tmp_path / "run", keep_stages=False, **given)
    assert (whole.path / "rgb-1" / checkpoint.LAST).exists()
    assert not (run.path / "rgb-1" / checkpoint.LAST).exists()
    assert run.predict("test").equals(whole.predict("test"))
    best = whole.path / "rgb-2" / checkpoint.BEST
    assert best.samefile(whole.path / "rgb-2" / checkpoint.LAST)  # its only epoch is the best


def test_maps_of_other_crops_are_refused(tmp_path):
    """Of 32 and of 30 pixels alike layer 3 has 2 × 2 cells: the recipe tells them apart."""
    folder = cache_of(tmp_path / "cache", {"resnet34/layer3": ["centre"]})
    options = egornn.Options(network="rgb", frames=2, size=30)
    data = open_cache(folder, egornn.inputs(options), validation=0.0, device="cpu").data
    with pytest.raises(OptionError, match="of 2 frames of 32 px, but frames=2 and size=30: extract them again with"):
        egornn.resolve(options, data)


def test_branches_start_from_the_network_that_made_the_maps():
    """Also networks that read no maps, so that all rows of a table start alike; ``light`` from its flow maps'."""
    for given in ({"network": "flow"}, {"network": "tsn"}, {"network": "two-stream"}):
        options = options_of(egornn.Options, **given)
        read = {one.name: one.when for one in egornn.inputs(options)}
        assert read["maps"] == "train"
        assert egornn.resolve(options, data_for(egornn.inputs(options))).cam_classes == 1000
    options = options_of(pmrd.Options, network="flow", light=True)
    assert {one.name for one in pmrd.inputs(options)} == {"flow_maps"}
    data = data_for(pmrd.inputs(options))
    resolved = pmrd.resolve(options, data)
    assert resolved.cam_classes == 1000
    assert next(pmrd.stages(resolved, data)).name == "flow"
    with pytest.raises(OptionError, match="cam_classes=7: the ResNet-34 that a branch starts from has 1000 classes"):
        next(pmrd.stages(options_of(pmrd.Options, network="flow", light=True, cam_classes=7), data))


def test_maps_of_other_frames_are_refused():
    options = options_of(pmrd.Options, network="rgb")
    data = data_for(pmrd.inputs(options))
    with pytest.raises(OptionError, match=rf"maps are of {T} frames of 64 px, but frames=5 and size=64"):
        pmrd.resolve(options_of(pmrd.Options, network="rgb", frames=5), data)
