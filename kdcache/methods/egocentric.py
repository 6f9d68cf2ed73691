"""What Ego-RNN, PMRD and motion imprinting share: their inputs, the start of a branch, and which of it is trained.

A stage that trains from layer 4 on reads cached layer-3 maps; one that trains earlier layers reads cached frames, flow
and motion maps, which are augmented alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from kdcache import backbones
from kdcache.backbones.egornn import EgoRNN
from kdcache.backbones.weights import asked_by
from kdcache.errors import OptionError
from kdcache.methods.contract import Batch, Data, Input, Segment
from kdcache.methods.labels import Clips, check_leak
from kdcache.methods.options import LeakOptions, refuse_negative, refuse_unless_positive, refuse_unless_share
from kdcache.methods.schedule import ScheduleOptions

VIEWS = (
    "centre", "centre-flip", "centre@1", "centre@1-flip", "tl@0.875", "tr@0.875-flip", "bl@0.75", "br@0.75-flip",
    "tl@0.65625-flip", "br@0.65625",
)  # fmt: skip
"""Views in which layer-3 maps are extracted: of the four scales × five places × mirrored that the papers draw from, ten
that have each scale, place and side. [reconstructed]"""


UNMIRRORED = tuple(dict.fromkeys(name.removesuffix("-flip") for name in VIEWS))
"""The same where nothing may be mirrored."""


@dataclass(frozen=True, kw_only=True)
class EgocentricOptions(LeakOptions, ScheduleOptions):
    """What the egocentric methods share."""

    frames: int = 20
    """T, frames spread evenly over a clip: the middle of each of T equal parts (the papers' code takes its beginning);
    in training, of stages that read frames, its first, middle or last. [reconstructed]"""
    size: int = 224
    """Side of the crop in pixels."""
    flow: Literal["flow", "flow-warped"] = "flow"
    """Which cached flow is read: TV-L1, or with the camera's motion taken off (``flow-warped``, as Ego-RNN's)."""
    init: str | None = None
    """ResNet-34 that branches start from: a checkpoint or ``random:SEED``. None: the one that made the cached maps;
    where none are read, the published ImageNet weights."""
    cam_classes: int = 0
    """Classes of that checkpoint's classifier, whose class activation map is the attention; 0: as many as it has."""
    hidden: int = 512
    """Channels of the ConvLSTM's state."""
    dropout: float = 0.7
    """Before the classifier of a branch."""
    augmentations: int = 1000
    """Different views of a clip's frames, one of which is drawn in each epoch (corner crops of four scales, mirrored or
    not, other moments); 0: always the centre crop. Cached maps are shown in the views that they have."""
    mirror: bool = True
    """Half of these views are mirrored. Off, mirrored views of cached maps are not shown either."""

    def __post_init__(self) -> None:
        LeakOptions.__post_init__(self)
        ScheduleOptions.__post_init__(self)
        refuse_unless_positive(self, "frames", "size", "hidden")
        refuse_negative(self, "augmentations", "cam_classes")
        refuse_unless_share(self, "dropout")

    def shared(self, *names: str) -> dict[str, Any]:
        """``share_key`` of a stage that depends on these options of the method, beside those of all methods here."""
        common = [f.name for f in fields(EgocentricOptions) if f.name != "allow_leak"]
        return {name: getattr(self, name) for name in (*common, *names)}

    @property
    def settings(self) -> dict[str, Any]:
        """Of the extraction of every input, so that one call decodes each clip once."""
        return {"frames": self.frames, "views": VIEWS if self.mirror else UNMIRRORED} | (
            {} if self.size == 224 else {"size": self.size}
        )

    def maps(self, name: str = "maps", stream: str = "resnet34/layer3", when: When = "always") -> Input:
        """Layer-3 maps ``[T, 256, h, w]``."""
        return Input(
            name=name,
            axes="TCHW",
            stream=stream,
            when=when,
            extract=(stream,),
            settings=self.settings,
            mirror=self.mirror,
        )

    def seen(
        self, name: str, stream: str, when: When = "always", *, stack: int = 1, frames: int = 0, beside: bool = False
    ) -> Input:
        """Frames ``[T, S, S, 3]``, flow ``[T, S, S, 2 stack]`` or motion maps ``[T, S, S]``, uint8.

        ``beside``: in the views and at the moments of cached maps that the same stage reads."""
        segment = Segment(
            frames=frames or self.frames,
            size=self.size,
            stack=stack,
            augmentations=self.augmentations,
            mirror=self.mirror,
            beside=beside,
        )
        axes = "THW" if stream == "idt" else "THWC"
        return Input(
            name=name, axes=axes, stream=stream, when=when, segment=segment, extract=(stream,), settings=self.settings
        )


When = Literal["always", "train"]
O = TypeVar("O", bound=EgocentricOptions)  # noqa: E741


def decide(options: O, data: Data, read: Sequence[str] = ("maps", "flow_maps")) -> O:
    """The options with target and classifier of the backbone decided; ``OptionError`` for labels that have leaked and
    for maps of other frames than the options'."""
    check_maps(options, data, [name for name in read if name in data.inputs])
    options = replace(options, target=options.choose_target(data))
    unlabelled = Clips(options, data).unlabelled
    check_leak(data, unlabelled, options.label_fraction, options.allow_leak)
    if options.cam_classes == 0:
        start = imagenet(options, data, "flow_maps" if "flow_maps" in data.inputs else "maps")
        options = replace(options, cam_classes=len(start["fc.weight"]))
    return options


def check_maps(options: EgocentricOptions, data: Data, names: Iterable[str]) -> None:
    """``OptionError`` for cached layer-3 maps of another number of frames or another size than the options'."""
    for name in names:
        T, _, h, _ = data.inputs[name].shape
        size = data.sizes.get(name, options.size if h == -(-options.size // 16) else 16 * h)
        if (T, size) != (options.frames, options.size):
            raise OptionError(
                f"The cached {name} are of {T} frames of {size} px, but frames={options.frames} and "
                f"size={options.size}: extract them again with --frames {options.frames} --size {options.size}, or set "
                f"frames={T} and size={size}."
            )


def imagenet(options: EgocentricOptions, data: Data, maps: str = "maps") -> dict[str, Tensor]:
    """State dict of the ResNet-34 that branches start from: the one that made the input ``maps``, where it is read.

    Raises:
        OptionError: ``init`` where the maps' own network is what has to go on.
        WeightsError: it cannot be found.
    """
    if maps in data.inputs:
        if options.init is not None:
            raise OptionError(f"init={options.init}: branches go on from the network that made {maps}; leave init out.")
        return data.backbone(maps)
    with asked_by("--set init="):
        return dict(backbones.build("resnet34", options.init).state_dict())


def branch(
    options: EgocentricOptions,
    data: Data,
    channels: int = 3,
    start: dict[str, Tensor] | None = None,
    attention: bool = True,
) -> EgoRNN:
    """ResNet-34, attention, ConvLSTM and classifier on the device.

    ``start``: the ResNet-34's weights, of 3 channels for any number (cross-modality initialisation: conv1's kernels
    are averaged over their channels and repeated); None for a network whose weights are loaded later.
    """
    net = EgoRNN(
        len(data.classes[options.target]),
        channels=channels,
        imagenet_classes=options.cam_classes,
        dropout=options.dropout,
        attention=attention,
        hidden=options.hidden,
    )
    if start is not None:
        if len(start["fc.weight"]) != options.cam_classes:
            raise OptionError(
                f"cam_classes={options.cam_classes}: the ResNet-34 that a branch starts from has "
                f"{len(start['fc.weight'])} classes; leave cam_classes out, and start all branches from one network."
            )
        net.resnet.load_state_dict(net.resnet.adapt(start))
    return net.to(data.device)


def on_maps(net: EgoRNN, batch: Batch) -> dict[str, Tensor]:
    """A branch from layer 4 on; see ``EgoRNN``."""
    return net(batch["maps"], start="layer4")  # type: ignore[no-any-return]


def recurrence(net: EgoRNN) -> Iterator[nn.Parameter]:
    """The ConvLSTM and the classifier."""
    yield from net.lstm.parameters()
    yield from net.classify.parameters()


def cam_weight(net: EgoRNN) -> Iterator[nn.Parameter]:
    """The weight of the ImageNet classifier, if the attention reads it; its bias, which only enters the argmax, never
    has a gradient."""
    if net.attention:
        yield net.resnet.get_parameter("fc.weight")


def layer4_convolutions(net: EgoRNN) -> Iterator[nn.Parameter]:
    """The six 3 × 3 convolutions of layer 4, not its batch norms and downsampling: what Ego-RNN trains. [ego-rnn]"""
    for name, parameter in net.resnet.get_submodule("layer4").named_parameters():
        if name.endswith(("conv1.weight", "conv2.weight")):
            yield parameter


def from_layer4(net: EgoRNN) -> Iterator[nn.Parameter]:
    """Layer 4 with its batch norms, the ImageNet classifier, the ConvLSTM and the classifier."""
    yield from net.resnet.get_submodule("layer4").parameters()
    yield from cam_weight(net)
    yield from recurrence(net)


def whole(net: EgoRNN) -> Iterator[nn.Parameter]:
    """Every parameter that can have a gradient."""
    for name, parameter in net.resnet.named_parameters():
        if not name.startswith("fc."):
            yield parameter
    yield from cam_weight(net)
    yield from recurrence(net)
