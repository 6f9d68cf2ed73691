"""Skeleton files → arrays: MSR Action3D text, JHMDB joints (npz), NTU RGB+D text, and arrays of any other sensor.

    >>> open_skeleton("a01_s01_e01_skeleton3D.txt").joints.shape     # float32 [frames, bodies × joints, 3]
    (54, 20, 3)
    >>> open_skeleton("jhmdb_joints_split1.npz").span(1.2, 2.4).joints.shape     # 30 frames a second, many clips a file
    (36, 15, 3)
    >>> open_skeleton("kinect.npy", JointLayout(centre=1, fps=30)).joints.shape     # an array [T, J, 3]
    (90, 25, 3)

``kdcache.skeletons.image`` turns them into the images that VA-CNN sees.
"""

from __future__ import annotations

from kdcache.skeletons.arrays import JointLayout
from kdcache.skeletons.base import Joints, Skeleton
from kdcache.skeletons.formats import check_skeleton, first_array, open_skeleton

__all__ = ["JointLayout", "Joints", "Skeleton", "check_skeleton", "first_array", "open_skeleton"]
