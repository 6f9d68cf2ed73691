"""Skeleton files → arrays: MSR Action3D text, JHMDB joints (npz) and NTU RGB+D ``.skeleton`` text.

    >>> open_skeleton("a01_s01_e01_skeleton3D.txt").joints.shape     # float32 [frames, bodies × joints, 3]
    (54, 20, 3)
    >>> open_skeleton("jhmdb_joints_split1.npz").span(1.2, 2.4).joints.shape     # 30 frames a second, many clips a file
    (36, 15, 3)

``kdcache.skeletons.image`` turns them into the images that VA-CNN sees.
"""

from __future__ import annotations

from kdcache.skeletons.base import Joints, Skeleton
from kdcache.skeletons.formats import open_skeleton

__all__ = ["Joints", "Skeleton", "open_skeleton"]
