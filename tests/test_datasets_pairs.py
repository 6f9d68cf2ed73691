"""Anticipation pairs: timing, clamping, the leak guard, and unlabelled pairs from gaps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.datasets.gaps import gaps, possible_starts, shares, unlabelled_pairs
from kdcache.datasets.pairs import ONE_FRAME_S, WINDOW_S, action_pairs, assert_no_leak, part_pairs
from kdcache.errors import ManifestError, OptionError
from kdcache.manifest import validate
from kdcache.sampling import Sampling, sample


def actions(starts, duration=100.0, **columns):
    n = len(starts)
    base = {"name": [f"v-{i}" for i in range(n)], "source": ["v.mp4"] * n, "start_s": np.array(starts, dtype=float)}
    return pd.DataFrame({**base, "duration_s": np.full(n, duration), "label": range(n), **columns})


def by_role(rows):
    return [rows[rows["role"] == role].set_index("pair") for role in ("observed", "action")]


def test_spans_of_a_pair():
    rows, left_out = action_pairs(actions([4.37]), tau=1.0)
    assert left_out == {}
    assert rows["clip_id"].tolist() == ["v-0@1-observed", "v-0@1-action"]
    assert rows["pair"].tolist() == ["v-0@1"] * 2
    observed, action = rows.iloc[0], rows.iloc[1]
    assert observed["stop_s"] == 4.37 - 1.0
    assert observed["start_s"] == pytest.approx(4.37 - 1.0 - 32 / 30, abs=1e-12)
    assert (action["start_s"], action["stop_s"]) == (4.37, 4.37 + WINDOW_S)
    assert rows["tau"].tolist() == ["1.0"] * 2
    assert rows["clamped"].tolist() == ["0"] * 2
    assert rows["label"].tolist() == [0, 0]


def test_another_tau_moves_observed_clips_only():
    one, two = (action_pairs(actions([0.14, 5.0, 60.01]), tau=tau)[0] for tau in (1.0, 1.5))
    for a, b, same in zip(by_role(one), by_role(two), (False, True), strict=True):
        spans = [(x["start_s"].tolist(), x["stop_s"].tolist()) for x in (a, b)]
        assert (spans[0] == spans[1]) == same
    assert set(one["clip_id"]).isdisjoint(two["clip_id"])


def test_early_actions_keep_the_first_frame_or_are_left_out():
    rows, _ = action_pairs(actions([0.0, 1.0, 1.5, 3.0]), tau=1.0)
    observed, _ = by_role(rows)
    assert observed["clamped"].tolist() == ["1", "1", "0", "0"]
    assert observed["start_s"].tolist()[:3] == [0, 0, 0]
    assert observed["stop_s"].tolist()[:3] == [ONE_FRAME_S, ONE_FRAME_S, 0.5]
    for fps in (15, 29.97, 59.94, 90, 119):
        assert set(sample(np.arange(50) / fps, 0.0, ONE_FRAME_S, Sampling(frames=32, fps=30))) == {0}
    rows, left_out = action_pairs(actions([0.0, 1.0, 1.5, 3.0]), tau=1.0, early="drop")
    assert set(rows["pair"]) == {"v-2@1", "v-3@1"}
    assert list(left_out.values()) == [("v-0", "v-1")]
    rows, left_out = action_pairs(actions([0.0, 1.0, 1.5, 3.0, 1 + WINDOW_S]), tau=1.0, early="whole")
    assert set(rows["pair"]) == {"v-3@1", "v-4@1"}
    assert list(left_out.values()) == [("v-0", "v-1", "v-2")]


def test_spans_end_with_the_video_and_later_actions_are_named():
    rows, left_out = action_pairs(actions([9.5, 10.0, 12.0], duration=10.0), tau=1.0)
    assert rows["stop_s"].max() == 10.0
    assert left_out == {"the action starts after the end of its video": ("v-1", "v-2")}
    unknown, left_out = action_pairs(actions([9.5, 12.0], duration=np.nan), tau=1.0)
    assert (len(unknown), left_out) == (4, {})


@pytest.mark.parametrize(("tau", "window"), [(-1.0, 1.0), (np.nan, 1.0), (1.0, 0.0), (np.inf, 1.0)])
def test_impossible_timing_is_refused(tau, window):
    with pytest.raises(OptionError):
        action_pairs(actions([5.0]), tau, window)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9000), min_size=1, max_size=20),
    st.integers(0, 400).map(lambda t: t / 100),
    st.floats(0.05, 4.0),
)
def test_no_frame_of_an_observed_clip_is_later_than_start_minus_tau(starts, tau, window):
    rows, _ = action_pairs(actions([s / 100 for s in starts]), tau, window)
    checked = validate(rows)
    assert_no_leak(checked)
    times = np.arange(6000) / 59.94
    observed, action = by_role(rows)
    for pair in observed.index[observed["clamped"] == "0"]:
        row = observed.loc[pair]
        taken = sample(times, row["start_s"], row["stop_s"], Sampling(frames=32, fps=30, anchor="last"))
        assert times[taken[-1]] < action.loc[pair, "start_s"] - tau


def pairs_of(starts, tau=1.0):
    return validate(action_pairs(actions(starts), tau)[0])


def test_the_guard_notices_one_frame():
    rows = pairs_of([5.0, 8.0, 0.2])
    assert_no_leak(rows)
    later = rows.copy()
    later.loc[2, "stop_s"] += 1 / 60
    with pytest.raises(ManifestError, match="'v-1@1' leaks") as caught:
        assert_no_leak(later)
    assert len(caught.value.problems) == 1
    earlier = rows.copy()
    earlier.loc[1, "start_s"] -= 1 / 60
    with pytest.raises(ManifestError, match="'v-0@1' leaks"):
        assert_no_leak(earlier)
    endless = rows.copy()
    endless.loc[0, "stop_s"] = np.nan
    with pytest.raises(ManifestError, match="leaks"):
        assert_no_leak(endless)
    wrong = rows.assign(tau="soon")
    with pytest.raises(ManifestError, match="leaks"):
        assert_no_leak(wrong)


def test_the_guard_notices_broken_pairs():
    rows = pairs_of([5.0, 8.0])
    with pytest.raises(ManifestError, match="'v-0@1' has no action clip"):
        assert_no_leak(rows.drop(index=1))
    with pytest.raises(ManifestError, match="'v-1@1' has no observed clip"):
        assert_no_leak(rows.drop(index=2))
    mixed = rows.copy()
    mixed.loc[1, "source"] = "w.mp4"
    with pytest.raises(ManifestError, match="joins two sources"):
        assert_no_leak(mixed)
    with pytest.raises(ManifestError, match="more than one observed clip"):
        assert_no_leak(pd.concat([rows, rows.iloc[[0]].assign(clip_id="again")], ignore_index=True))
    assert_no_leak(rows.drop(columns="tau"))  # pairs without an anticipation time make no such promise


def test_parts_of_whole_clips():
    clips = pd.DataFrame({"name": ["a", "b"], "source": ["a.avi", "b.avi"], "label": [1, 0]})
    rest = validate(part_pairs(clips, {"a": 0.4, "b": 1.2}, "rest"))
    assert rest["clip_id"].tolist() == ["a-observed", "a-action", "b-observed", "b-action"]
    assert rest["stop_s"].tolist()[::2] == rest["start_s"].tolist()[1::2] == [0.4, 1.2]
    assert rest["start_s"].isna().tolist() == [True, False] * 2
    assert rest["label"].tolist() == [1, 1, 0, 0]
    whole = validate(part_pairs(clips, {"a": 0.4, "b": 1.2}, "whole"))
    assert whole.loc[whole["role"] == "action", ["start_s", "stop_s"]].isna().all(axis=None)


spans = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), max_size=12).map(
    lambda items: [(start / 100, (start + length) / 100) for start, length in items]
)


def overlaps(start, stop, annotated):
    return any(start < b - 1e-9 and a < stop - 1e-9 for a, b in annotated)


@settings(max_examples=100, deadline=None)
@given(spans, st.integers(1, 2500).map(lambda d: d / 100))
def test_gaps_and_annotations_share_out_the_video(annotated, duration):
    free = gaps(annotated, duration)
    for instant in np.arange(0.005, duration, 0.01):
        covered = any(a <= instant < b for a, b in annotated)
        assert covered != any(a <= instant < b for a, b in free)


@settings(max_examples=100, deadline=None)
@given(spans, st.floats(0.1, 3), st.floats(0, 3))
def test_a_pair_fits_exactly_where_possible_starts_says(annotated, window, tau):
    free = gaps(annotated, 20.0)
    starts = possible_starts(free, window, tau)
    for s in np.arange(0.0, 20, 0.0937):
        second = s + window + tau
        inside = second + window <= 20 and not overlaps(s, s + window, annotated)
        fits = inside and not overlaps(second, second + window, annotated)
        near_edge = any(abs(s - edge) < 1e-6 for span in starts for edge in span)
        assert near_edge or fits == any(a <= s <= b for a, b in starts)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.floats(0, 1))
def test_shares_add_up_are_proportional_and_never_exceed_sizes(sizes, part):
    sizes = np.array(sizes)
    count = int(sizes.sum() * part)
    given_out = shares(count, sizes)
    assert given_out.sum() == count
    assert (given_out <= sizes).all()
    if sizes.sum():
        assert (abs(given_out - count * sizes / sizes.sum()) < 1 + 1e-6).all()


def draw(count, seed=0, tau=1.0, window=WINDOW_S, videos=("a", "b")):
    table = pd.DataFrame(
        {"name": list(videos), "source": [f"{v}.mp4" for v in videos], "duration_s": 60.0, "split": "train"}
    )
    annotated = {"a": [(10.0, 20.0)], "b": [(0.0, 30.0), (29.0, 45.0)]}
    return unlabelled_pairs(table, annotated, count, tau, window, seed), annotated


def test_unlabelled_pairs_lie_in_gaps_tau_apart_and_repeat_with_their_seed():
    rows, annotated = draw(200)
    checked = validate(rows)
    assert_no_leak(checked)
    observed, action = by_role(checked)
    assert len(observed) == len(action) == 200
    assert np.allclose(action["start_s"] - observed["stop_s"], 1.0, atol=1e-9)
    for row in rows.itertuples():
        assert not overlaps(row.start_s, row.stop_s, annotated[row.source[0]])
        assert 0 <= row.start_s < row.stop_s <= 60 + 1e-9
    assert not observed.duplicated(["source", "start_s"]).any()
    share = (observed["source"] == "a.mp4").mean()
    assert 0.7 < share < 0.85  # 42.7 s against 11.9 s in which a pair fits
    pd.testing.assert_frame_equal(draw(200)[0], rows)
    assert not draw(200, seed=1)[0]["start_s"].equals(rows["start_s"])


def test_more_pairs_than_the_gaps_hold_are_refused():
    with pytest.raises(OptionError, match="ask for fewer"):
        draw(10**6)
    assert len(draw(0)[0]) == 0
