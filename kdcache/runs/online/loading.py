"""Everything that a run needs for an answer, loaded once for any number of clips."""

from __future__ import annotations

from typing import Any

from kdcache.runs.online.answer import LoadedRun
from kdcache.runs.online.fitted import OfSources
from kdcache.runs.online.unfolding import Unfolding
from kdcache.runs.online.whole import WholeClips
from kdcache.runs.run import Run


def load(run: Run, which: str = "last", weights: Any = None) -> LoadedRun:
    """The run with its network, and the streams that it reads with their weights; see ``kdcache.predict``.

    Raises:
        OptionError: a run that has not finished, one of early recognition's teacher, or one on imported streams.
        WeightsError: a backbone's weights are not here, or are others.
    """
    if run.settings.method == "early" and run.options.parts is None:  # parts are known once the whole clip is
        return Unfolding(run, which, weights)
    kind = OfSources if run.settings.shards is None else WholeClips
    return kind(run, which, weights)
