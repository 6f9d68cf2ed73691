"""Options of Ego-RNN and its baselines, and those of its RGB stream, which PMRD shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdcache.errors import OptionError
from kdcache.methods.egocentric import EgocentricOptions
from kdcache.methods.options import refuse_unless_positive, refuse_unless_share

SCHEDULES = ("rgb_1", "rgb_2", "flow_net", "joint", "spatial")
_ADAM = "weight_decay=4e-5 eps=1e-4"


@dataclass(frozen=True, kw_only=True)
class RGBStreamOptions(EgocentricOptions):
    """How the RGB stream is trained."""

    rgb_1: str = f"adam lr=1e-3 epochs=300 milestones=25/75/150 {_ADAM}"
    """Schedule of the RGB stream's first stage. [Ego-RNN's code]"""
    rgb_2: str = f"adam lr=1e-4 epochs=150 milestones=25/75 {_ADAM}"
    """Schedule of its second stage. [Ego-RNN's code]"""


@dataclass(frozen=True, kw_only=True)
class EgoRNNOptions(RGBStreamOptions):
    """Everything that can be set. Defaults are those of Ego-RNN's code."""

    network: Literal["rgb", "flow", "average", "joint", "two-stream", "tsn"] = "joint"
    """What is trained and answers; see the module."""
    attention: bool = True
    """Off: the ConvLSTM reads layer 4's maps as they are (the imprint paper's row "ConvLSTM")."""
    frames: int = 25
    """T, frames spread evenly over a clip, of the RGB stream."""
    flow: Literal["flow", "flow-warped"] = "flow-warped"
    """Which cached flow is read; Ego-RNN's has the camera's motion taken off."""
    snippets: int = 5
    """Stacks of flow (and frames of ``two-stream`` and ``tsn``), spread over a clip, whose mean score is tested."""
    flow_weight: float = 1.0
    """Weight of the flow network's scores against 1 of RGB's, where they are averaged. [reconstructed]"""
    snippet_dropout: float = 0.5
    """Before the classifiers of the flow network and of ``two-stream``'s and ``tsn``'s frame network."""
    flow_net: str = "sgd lr=1e-2 epochs=750 milestones=150/300/500 gamma=0.5 weight_decay=5e-4"
    """Schedule of the flow network."""
    joint: str = "sgd lr=1e-2 epochs=250 decay=0.99 weight_decay=5e-4"
    """Schedule of the joint stage; the flow network's layer 4 moves at a hundredth of its rate."""
    spatial: str = "sgd lr=1e-3 epochs=80 milestones=30/60 weight_decay=5e-4"
    """Schedule of the frame network of ``two-stream`` and ``tsn``. [TSN's code]"""

    def __post_init__(self) -> None:
        EgocentricOptions.__post_init__(self)
        refuse_unless_positive(self, "snippets", "flow_weight")
        for name in SCHEDULES:
            self.schedule(name)
        refuse_unless_share(self, "snippet_dropout")
        if not self.attention and self.network not in ("rgb", "average"):
            raise OptionError(f"attention=false is for network=rgb or average, not {self.network}.")
