"""Which cached views of several streams of features are shown side by side, and which of them first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdcache.data.inputs import Binding, align_views
from kdcache.data.stream import Reader, view_count
from kdcache.errors import OptionError


def common_views(cache: Reader, features: Sequence[Binding]) -> tuple[dict[str, list[int]], list[str] | None]:
    """``align_views`` of all streams that these bindings read, without mirrored views where an input wants none.

    Raises:
        OptionError: see ``align_views``; no view is left, or which are mirrored is not known.
    """
    views = {s: view_count(cache, s) for binding in features for s in binding.streams}
    if not views:
        return {}, None
    shown, common = align_views({s: cache.recipe(s) for s in views}, views)
    if all(one.mirror for binding in features for one in binding.inputs):
        return shown, common
    return _unmirrored(shown, common, views)


def check_first_view(cache: Reader, bindings: Sequence[Binding]) -> None:
    """``OptionError`` where privileged features lack the view in which the others are judged, and answer: a finished
    run, which does not open them, would answer from another view than it was judged in."""
    features = [b for b in bindings if b.inputs[0].segment is None]
    privileged = [b for b in features if b.privileged]
    _, judged = common_views(cache, features)
    _, answering = common_views(cache, [b for b in features if not b.privileged])
    if answering and (not judged or judged[0] != answering[0]):
        lacking = ", ".join(b.names for b in privileged)
        raise OptionError(
            f"{lacking} has no view {answering[0]}, the first of what the trained network reads, in which it is judged"
            ": extract it with --views that begin alike."
        )


def _unmirrored(
    shown: dict[str, list[int]], common: list[str] | None, views: Mapping[str, int]
) -> tuple[dict[str, list[int]], list[str] | None]:
    """What ``align_views`` gave, without mirrored views."""
    if common is None:
        if max(views.values()) > 1:
            raise OptionError(
                "mirror=false: the cached views have no names, so mirrored ones are not known: use one view."
            )
        return shown, common
    kept = [i for i, name in enumerate(common) if not name.endswith("-flip")]
    if not kept:
        raise OptionError(
            "mirror=false, and every cached view is mirrored: extract others with --views, such as centre."
        )
    return {stream: [of[i] for i in kept] for stream, of in shown.items()}, [common[i] for i in kept]
