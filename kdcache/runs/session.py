"""What several runs of one process may share: opened caches, trained teachers, and who is told what."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcache.data.prepare import Prepared, prepare
from kdcache.engine.checkpoint import SUMMARY
from kdcache.engine.log import say
from kdcache.files import temporary_name
from kdcache.methods import method as method_module
from kdcache.methods.contract import Stage
from kdcache.runs.config import Settings

OF_A_RUN = ("seed", "save_every", "method")  # settings that change nothing about what is read


@dataclass
class Session:
    """Pass one to several calls of ``train``, one after the other: streams then stay in memory between them.

    Attributes:
        stages: a folder where trained stages with an ``identity`` are kept for other runs; None shares none.
        say: takes the sentences that a run has to say.
        bars: whether progress bars are shown.
    """

    stages: Path | None = None
    say: Callable[[str], None] = say
    bars: bool = True
    _caches: dict[str, Prepared] = field(default_factory=dict, repr=False)

    def prepare(self, settings: Settings, options: Any, before: dict[str, Any]) -> Prepared:
        """As ``prepare``, but caches that an earlier run of the session has opened are not opened again."""
        if before:  # continued under the conditions that it began under
            return prepare(settings, options, self.say, before)
        samples = method_module(settings.method).SAMPLES
        facts = {name: value for name, value in asdict(settings).items() if name not in OF_A_RUN}
        key = json.dumps([samples, getattr(options, "tau", None) if samples == "pairs" else None, facts])
        if key not in self._caches:
            self._caches.clear()  # two caches may not fit into memory side by side
            self._caches[key] = prepare(settings, options, self.say)
        known = self._caches[key]
        return replace(known, data=replace(known.data, seed=settings.seed), facts=dict(known.facts))

    def take(self, stage: Stage, prepared: Prepared, folder: Path) -> None:
        """Copy a stage that another run has trained into ``folder``, if there is one."""
        kept = self._kept(stage, prepared)
        if kept is not None and (kept / SUMMARY).exists() and not (folder / SUMMARY).exists():
            folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in kept.iterdir())
            for name in [n for n in names if n != SUMMARY] + [SUMMARY]:  # the summary says that it is whole
                shutil.copyfile(kept / name, folder / name)

    def keep(self, stage: Stage, prepared: Prepared, folder: Path) -> None:
        """Keep a trained stage for other runs."""
        kept = self._kept(stage, prepared)
        if kept is None or kept.exists():
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(temporary_name(kept.name))
        shutil.copytree(folder, temporary)
        try:
            temporary.rename(kept)
        except OSError:  # another process kept the same stage in the meantime
            shutil.rmtree(temporary)
            if not kept.exists():
                raise

    def _kept(self, stage: Stage, prepared: Prepared) -> Path | None:
        if self.stages is None or stage.identity is None:
            return None
        facts = {name: value for name, value in prepared.facts.items() if name != "budget"}
        content = json.dumps([stage.name, stage.identity, facts, prepared.data.seed], sort_keys=True)
        return self.stages / f"{stage.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
