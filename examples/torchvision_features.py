"""Which of two networks of torchvision tells one's classes apart: features of both, then a classifier on either.

Videos lie in FOLDER/CLASS/NAME; people are named at the beginning of NAME, as in ``daria_walk.avi``:

    python examples/torchvision_features.py videos/ --held-out ido,ira --work two_networks/

Weights are torchvision's (``--random`` tries the script out without any).
"""

import argparse
from pathlib import Path

import kdcache

NETWORKS = {"torchvision:s3d": (32, 112), "torchvision:swin3d_t": (16, 112)}
"""Network → frames of a segment and side of the crop; smaller than their own, for CPUs."""


def main() -> None:
    """Extract with two workers, train on each stream, print the accuracy on the people held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--held-out", required=True, help="people whose clips test, such as ido,ira")
    parser.add_argument("--work", type=Path, default=Path("two_networks"))
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--frames", type=int, help="of a segment, for a quick look")
    parser.add_argument("--epochs", type=int, default=100)
    given = parser.parse_args()

    clips = kdcache.datasets.manifest_for(
        "folder", given.videos, subject="(?P<subject>[a-z]+)_", held_out=given.held_out
    )
    for name, (frames, size) in NETWORKS.items():
        weights = {name: "random:0"} if given.random else None
        report = kdcache.extract(
            clips, given.videos, given.work / "cache", [f"{name}/pool"], weights, workers=2,
            frames=given.frames or frames, size=size,
        )  # fmt: skip
        print(report)
        out = given.work / name.replace(":", "-")
        run = kdcache.train(
            "recognition", shards=given.work / "cache", out=out, stream=f"{name}/pool", epochs=given.epochs
        )
        print(run)


if __name__ == "__main__":
    main()
