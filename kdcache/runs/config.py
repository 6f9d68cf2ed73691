"""The configuration of a run: settings whatever the method, options of the method; to TOML and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from kdcache.errors import OptionError, unknown
from kdcache.files import atomic
from kdcache.log import logger
from kdcache.methods import method as method_module
from kdcache.methods.declared import check_method, option_names
from kdcache.options import build, parse_texts, to_table
from kdcache.roots import Roots
from kdcache.seals import BLANK, is_broken, sealed
from kdcache.skeletons import JointLayout
from kdcache.toml_text import BrokenToml, read_toml


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is made, whatever its method: on the shards of a cache, or on the sources of a manifest."""

    method: str
    """Name in ``kdcache.methods.METHODS``."""
    shards: str | None = None
    """Folder of the cache."""
    manifest: str | None = None
    """Instead of a cache: CSV of clips, whose inputs are made from the sources on demand (``kdcache fit``)."""
    root: str | None = None
    """Folder that the manifest's sources are relative to."""
    more_roots: tuple[str, ...] = ()
    """Folders in which sources are looked for after ``root``."""
    allow_absolute: bool = False
    """Whether the manifest's sources may be absolute paths."""
    centre_joint: int | None = None
    """Joint in the middle of a body, of .npy and .npz skeleton files, which do not say it."""
    skeleton_fps: float | None = None
    """Frames a second of these files."""
    array: str | None = None
    """Name of the joints in .npz files that hold several arrays."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """Which decoder reads videos, to the same pixels; ``auto``: PyAV, the faster."""
    seed: int = 0
    """Of initialisation, order, views, augmentation and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """fp32, bf16 or fp16; ``auto``: fp32 on a CPU, bf16 on a GPU."""
    deterministic: bool = False
    """On a GPU: algorithms that give the same bits each time, slower; an operation that has none ends the run. On a CPU
    all are such."""
    stream: str | None = None
    """Which cached streams; needed where several would do. ``a,b`` joins the vectors of two; ``input=a`` names the
    input where a method reads several."""
    recipe: str | None = None
    """Digest of the recipe to read, where clips of a stream were extracted under more than one."""
    weights: str | None = None
    """Checkpoint of the backbone that made the stream, where it is not found by the recipe."""
    memory_fraction: float = 0.6
    """Share of the free memory that cached streams (of sources: decoded frames) may fill; 0 reads every batch."""
    split_column: str = "split"
    """Column of the manifest that says which clips train, validate and test, where there are several such columns; or
    ``subject=S2``: clips with that value of any other column test, the others train."""
    validation: float = 0.2
    """Share of the labelled training clips to hold out where the manifest has no validation split; 0 holds nothing
    out."""
    validation_seed: int = 0
    """Of the order in which groups, subjects or sources are held out; 0 is the order of versions without it."""
    validation_as: Literal["validation", "train", "test"] = "validation"
    """What clips of split ``validation`` count as. ``test``: they are scored and select nothing; a share of the
    training clips is held out in their place. ``train``: they train."""
    tau_s: float | None = None
    """Anticipation time in seconds, needed only where the pairs of a manifest have several."""
    save_every: float = 30.0
    """Seconds between checkpoints, taken at the end of an epoch; 0 takes one after every epoch."""
    eval_every: int = 1
    """Held-out clips are scored after every so many epochs of a stage and after its last, and the best epoch is one of
    these; more than 1 where an epoch takes less time than scoring does."""
    keep_stages: bool = True
    """Off: when a run has finished, only the weights of the stage that answers are left, which of methods in several
    stages is a sixth to a third; figures of earlier stages can then not be drawn."""

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.manifest is None):
            raise OptionError("A run trains on shards or on a manifest's sources: give one of them.")
        for name in ("seed", "validation_seed"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name}={getattr(self, name)}: give a whole number from 0 on.")
        if self.eval_every < 1:
            raise OptionError(f"eval_every={self.eval_every}: give a whole number of epochs from 1 on.")
        for name in ("save_every", "tau_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise OptionError(f"{name}={value}: give a number of seconds from 0 on.")
        if not 0 <= self.memory_fraction <= 1:
            raise OptionError(f"memory_fraction={self.memory_fraction}: give a share of the free memory, 0 to 1.")
        if not 0 <= self.validation < 1:
            raise OptionError(f"validation={self.validation}: give a share of the training clips, 0 to below 1.")
        JointLayout.stated(self.centre_joint, self.skeleton_fps, self.array)

    @property
    def roots(self) -> Roots:
        """What the manifest's sources are relative to."""
        folders = [] if self.root is None else [self.root, *self.more_roots]
        return Roots.of(folders, self.allow_absolute)

    @property
    def joint_layout(self) -> JointLayout | None:
        """Of skeleton files that are arrays, where it is stated."""
        return JointLayout.stated(self.centre_joint, self.skeleton_fps, self.array)


OF_SOURCES = ("manifest", "root", "more_roots", "allow_absolute", "decoder", "centre_joint", "skeleton_fps", "array")
"""Settings of runs on the sources of a manifest alone."""


SETTABLE = (
    "stream", "recipe", "weights", "memory_fraction", "split_column", "validation", "validation_seed", "validation_as",
    "tau_s", "save_every", "eval_every", "keep_stages", "deterministic",
)  # fmt: skip
"""Settings that ``train`` takes beside a method's options."""

_RENAMED = {"hold": "memory_fraction", "split": "split_column"}
_RENAMED_OF = {"anticipation": {"tau": "tau_s"}}


def renamed(method: str, values: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """``values`` under today's names: options that version 0.1 called otherwise are taken for one release."""
    names = _RENAMED | _RENAMED_OF.get(method, {})
    if both := [old for old in values if names.get(old) in values]:
        raise OptionError(f"{both[0]} and {names[both[0]]} are one option: give {names[both[0]]} alone.")
    if warn:
        for old in values:
            if old in names:
                logger.warning("option %s is called %s now; the old name goes with the next release", old, names[old])
    return {names.get(name, name): value for name, value in values.items()}


def own_names(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` under today's names, those of the method's own options as they are."""
    options = method_module(method).Options.__dataclass_fields__
    settings = renamed(method, {name: value for name, value in values.items() if name not in options})
    return {name: value for name, value in values.items() if name in options} | settings


def parse_set(method: str, sets: Sequence[str]) -> dict[str, Any]:
    """``["lam=0.1", "loss_d=both"]`` → ``{"lam": 0.1, "loss_d": "both"}``, typed by the method's ``Options``.

    Besides these, those in ``SETTABLE`` can be set. Sequences are written ``15,25``, absence ``none``.
    """
    options = get_type_hints(method_module(method).Options)
    names = _RENAMED | _RENAMED_OF.get(method, {})
    texts = []
    for text in sets:
        name, equals, value = text.partition("=")
        if name in names and name not in options:
            renamed(method, {name: value})
            text = f"{names[name]}{equals}{value}"
        texts.append(text)
    return parse_texts({name: get_type_hints(RunSettings)[name] for name in SETTABLE} | options, texts)


def check_names(method: str, sets: Sequence[str]) -> None:
    """Refuse an unknown method, and ``name=value`` texts of unknown names, before anything heavy is imported.

    Values are checked by ``parse_set``; so are the names of a method whose source does not tell its options.

    Raises:
        OptionError: an unknown name, with the nearest.
    """
    check_method(method)
    options = option_names(method)
    if options is None:
        return
    former = _RENAMED | _RENAMED_OF.get(method, {})
    known = [*SETTABLE, *options]
    for text in sets:
        name, equals, _ = text.partition("=")
        if equals and name not in known and name not in former:
            raise unknown("option", name, known)


def write_config(path: Path, settings: RunSettings, options: Any, resolved: Mapping[str, Any]) -> None:
    """``config.toml``: the settings, ``[options]`` as given or by default, ``[resolved]`` what ``auto`` came to."""
    import tomli_w

    content = {**to_table(settings), "options": to_table(options), "resolved": dict(resolved)}
    with atomic(path) as temporary:
        temporary.write_bytes(sealed(f"# {BLANK}\n{tomli_w.dumps(content)}"))


def read_config(path: str | Path) -> tuple[RunSettings, Any, dict[str, Any]]:
    """Settings, the method's options, and what was resolved, of the run in whose folder a ``config.toml`` lies; also
    of version 0.1.

    Raises:
        OptionError: no such file, one that is not as its run wrote it, or unknown settings.
    """
    path = Path(path)
    if not path.exists():
        raise OptionError(f"{path.parent} is no run: it has no {path.name}; name a folder that `kdcache train` made.")
    content = _tables(path)
    if is_broken(path):
        raise OptionError(
            f"{path} is not as its run wrote it, its SHA-256 differs: restore it; delete its first line if you changed "
            "it on purpose, such as a path that has moved; to train with other settings, give the file to --config, "
            "and another folder to --out."
        )
    return _interpreted(content, path)


def _tables(path: Path) -> dict[str, Any]:
    """The content of a ``config.toml``, ``options`` and ``resolved`` among it."""
    try:
        content = read_toml(path)
    except BrokenToml as error:
        raise OptionError(f"{path} is damaged ({error}): restore it, or train again in another folder.") from error
    if not ("method" in content or "backbone" in content):
        raise OptionError(f"{path} names no method: it is damaged or not of a run; train again in another folder.")
    resolved = content.setdefault("resolved", {})
    for name, table in {"options": content.setdefault("options", {}), "resolved": resolved}.items():
        if not isinstance(table, dict):
            raise OptionError(f"{path}: {name} is no table; it is damaged or not of a run, train in another folder.")
    if not isinstance(resolved.get("options", {}), dict):
        raise OptionError(f"{path}: resolved.options is no table; it is damaged or not of a run.")
    return content


def _interpreted(content: dict[str, Any], path: Path) -> tuple[RunSettings, Any, dict[str, Any]]:
    """Settings, options and what was resolved, under today's names and of their types; errors name the file."""
    try:
        return _of_tables(content)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def _of_tables(content: dict[str, Any]) -> tuple[RunSettings, Any, dict[str, Any]]:
    resolved = content.pop("resolved")
    options = content.pop("options")
    if "method" not in content and "backbone" in content:  # a fit of version 0.1
        content["method"], options["backbone"] = "recognition", content.pop("backbone")
        resolved.get("options", {})["backbone"] = options["backbone"]
    method = str(content.get("method", ""))
    content = renamed(method, content, warn=False)
    for kept in (options, resolved.get("options", {})):
        if method == "anticipation" and "tau" in kept:
            content.setdefault("tau_s", kept.pop("tau"))
    share = options.get("label_fraction", 1)
    if method == "anticipation" and "label_seed" not in options and isinstance(share, float) and share < 1:
        options["label_seed"] = content.get("seed", 0)  # as version 0.1 drew them
    settings, kind = build(RunSettings, content), method_module(method).Options
    if "options" in resolved:  # those that are newer than the run have their defaults
        resolved["options"] = to_table(build(kind, resolved["options"]))
    return settings, build(kind, options), resolved


def load_config(path: str | Path) -> dict[str, Any]:
    """The arguments of ``train`` that a ``config.toml`` stands for: ``train(**load_config(path), out=...)``.

    It may have been edited since its run wrote it, which is logged."""
    path = Path(path)
    settings, options, _ = _interpreted(_tables(path), path)
    if is_broken(path):
        logger.warning("%s was changed since its run wrote it: this is another run's configuration", path)
    own = {f.name: getattr(settings, f.name) for f in fields(settings)}
    if settings.manifest is None:
        own = {name: value for name, value in own.items() if name not in OF_SOURCES}
    return own | {f.name: getattr(options, f.name) for f in fields(options)}
