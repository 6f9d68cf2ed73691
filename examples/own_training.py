"""A training loop of one's own, in plain torch, on the features of a cache. How to run it: docs/python.md."""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import kdcache


def train(shards: str, stream: str, epochs: int = 20, workers: int = 2, seed: int = 0) -> float:
    """Train a linear classifier on features; returns its accuracy on held-out clips in per cent."""
    torch.manual_seed(seed)
    cache = kdcache.Cache(shards)
    clips = cache.dataset(stream, split="train", view="random")
    held_out = cache.dataset(stream, split="validation")
    print(cache, clips, held_out, sep="\n")
    loader = DataLoader(
        clips,
        batch_size=16,
        shuffle=True,
        num_workers=workers,
        collate_fn=clips.collate,  # reads a batch at once; torch's default collate works too
        persistent_workers=workers > 0,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(len(clips.classes["label"]))).to(device)
    network(clips[0][stream][None].float().to(device))  # gives the lazy layer its width
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for epoch in range(epochs):
        total = 0.0
        for batch in loader:
            loss = cross_entropy(network(batch[stream].to(device).float()), batch["label"].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch["label"])
        print(f"epoch {epoch + 1}: loss {total / len(clips):.3f}")
    with torch.no_grad():
        batches = held_out.loader(64)  # reads in a thread: no worker processes for a single pass
        right = [(network(b[stream].to(device).float()).argmax(1).cpu() == b["label"]).sum().item() for b in batches]
    accuracy = 100.0 * float(sum(right)) / len(held_out)
    print(f"{accuracy:.1f} % of {len(held_out)} held-out clips")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="folder that `kdcache extract` has filled")
    parser.add_argument("stream", help="such as i3d-rgb/mixed4a")
    arguments = parser.parse_args()
    train(arguments.shards, arguments.stream)
