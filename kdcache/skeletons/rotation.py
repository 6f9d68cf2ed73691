"""The rotation matrix of VA-CNN's view transform, used by the network and by the augmentation that imitates it."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(angles: Tensor) -> Tensor:
    """R_z R_y R_x as the published code has it: angles ``[N, 3]`` in radians about x, y, z → ``[N, 3, 3]``."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    one, zero = torch.ones_like(cx), torch.zeros_like(cx)

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, -1).reshape(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cx, sx, zero, -sx, cx)
    about_y = matrix(cy, zero, -sy, zero, one, zero, sy, zero, cy)
    about_z = matrix(cz, sz, zero, -sz, cz, zero, zero, zero, one)
    return about_z @ about_y @ about_x
