"""What ``kdcache extract --for METHOD`` computes: exactly the streams that a method's stages read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdcache.backbones import canonical, input_spec
from kdcache.errors import OptionError
from kdcache.methods import load_method
from kdcache.methods import method as method_module
from kdcache.options import build
from kdcache.runs import presets


@dataclass(frozen=True)
class ExtractionCall:
    """One call of ``extract``: streams of videos, or streams of skeletons."""

    streams: tuple[str, ...]
    settings: dict[str, Any]
    """Fields of ``StreamSettings`` on top of the defaults, such as ``levels``."""
    inputs: tuple[str, ...]
    """Names of the method's inputs that read them, those read in training only marked so."""
    in_pairs: bool = False
    """Whether the method reads pairs of clips, for which a manifest needs the columns ``pair`` and ``role``."""

    def __str__(self) -> str:
        return f"{', '.join(self.streams)} for {', '.join(self.inputs)}"


def extraction_calls(method: str, preset: str | None = None, **options: Any) -> list[ExtractionCall]:
    """The calls of ``extract`` that a method needs, as the inputs that it declares say.

    Args:
        method: a name, or a method of one's own by its import path or file, see ``kdcache.train``.
        preset: the paper's settings for a dataset, which may read other streams than the default.
        options: of the method, on top of the preset's.

    Raises:
        OptionError: an unknown method, preset or option, or a method whose inputs are not cached.
    """
    from kdcache.data.pairs import ROLES  # loads torch, as methods do

    method = load_method(method)
    chosen = {**(presets.preset(method, preset) if preset else {}), **options}
    known = presets.streams(method, preset) if preset else None
    module = method_module(method)
    inputs = module.inputs(build(module.Options, chosen))
    in_pairs = {one.role for one in inputs} <= set(ROLES)
    calls: dict[tuple[bool, str], ExtractionCall] = {}
    for one in inputs:
        streams = known if known is not None else one.extract
        if not streams and one.segment is None:
            raise OptionError(
                f"{method} reads vectors that were computed elsewhere as its input {one.name}: import them instead."
            )
        if not streams:
            raise OptionError(f"{method} makes its input {one.name} on demand: nothing has to be extracted for it.")
        said = one.name + (" (in training only)" if one.when == "train" else "")
        for name in streams:
            key = (_reads_skeletons(name), repr(sorted(one.settings.items())))
            before = calls.get(key)
            names = dict.fromkeys((*(before.streams if before else ()), name))
            readers = dict.fromkeys((*(before.inputs if before else ()), said))
            calls[key] = ExtractionCall(tuple(names), dict(one.settings), tuple(readers), in_pairs)
    return list(calls.values())


def _reads_skeletons(stream: str) -> bool:
    head, slash, _ = stream.rpartition("/")
    return bool(slash) and input_spec(canonical(head)).modality == "skeleton"
