"""What the fusion of relation distillation sees in a clip: ``kdcache show --run``."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.errors import OptionError
from kdcache.methods.contract import Batch, Data, Predictor
from kdcache.methods.pictures import Picture, StageLoader
from kdcache.methods.relation_branches import READS, as_read, branch
from kdcache.methods.relation_networks import Fused
from kdcache.methods.relation_options import RelationOptions


@torch.no_grad()
def explain(
    options: RelationOptions, data: Data, predictor: Predictor, batch: Batch, load: StageLoader
) -> list[Picture]:
    """The fusion's weights, and what A's and S's maps say for the class that is answered, position by position.

    The classifier is linear and z is a mean over positions, so its logit is the sum of both (and its bias)."""
    net = predictor.module
    if not isinstance(net, Fused):
        raise OptionError(
            f"network={options.network}, fusion={options.fusion}: there are no weights of a fusion to draw; use a run "
            "of network=fused with another fusion than average."
        )
    seen = {name: as_read(options, values) for name, values in batch.items() if name in READS.values()}
    out = net(seen["rgb"])
    w, (of_a, of_m), k = out["weights"][0].float(), net.fusion.evidence(), int(out["logits"][0].argmax())
    said = {
        "evidence of A": _evidence(out["A.last"], out["A.where"], w[0] * of_a[k]),
        "evidence of S": _evidence(out["S.last"], out["S.where"], w[1] * of_m[k]),
    }
    most = max(float(v.abs().max()) for v in said.values())
    what = {"evidence of A": "appearance: what is added to the logit of the answer; 0 in the middle of the scale"}
    pictures = [
        Picture(title=title, values=values, over=True, note=what.get(title, "imitated motion"), scale=(-most, most))
        for title, values in said.items()
    ]
    pictures += _weights(net.fusion.kind, w)
    if "flow" in seen and options.distils:
        energy = {"motion of S": _energy(out["S.last"])}
        teacher = load("teacher", branch(options, data, "teacher"))
        if teacher is not None:
            energy["motion of F"] = _energy(teacher(seen["flow"])["last"])
        note = "mean square of the map's channels; the teacher's is of flow"
        pictures += [Picture(title=title, values=each, note=note) for title, each in energy.items()]
    return pictures


def _weights(kind: str, w: Tensor) -> list[Picture]:
    """The fusion's weights ``[2, d]`` of this clip; none where it has none."""
    if kind == "gate":
        note = "of the stream, against 1 minus it of appearance"
        return [Picture(title="weight of motion", values=w[1, :1].cpu(), note=note, in_time=False, scale=(0.0, 1.0))]
    if kind == "attention":  # the two weights of a channel add up to 1
        shown = {"weight of motion": w[1]}
    elif kind == "se":
        shown = {"gates of appearance": w[0], "gates of motion": w[1]}
    else:
        return []
    return [
        Picture(
            title=title,
            values=values.sort().values.cpu(),
            note=f"of each of {len(values)} channels, sorted; mean {float(values.mean()):.3f}",
            in_time=False,
            scale=(0.0, 1.0),
        )
        for title, values in shown.items()
    ]


def _evidence(last: Tensor, where: Tensor, weights: Tensor) -> Tensor:
    """What each position adds to a logit, ``[t, h, w]``: its weight in z times the product with ``weights`` ``[d]``."""
    return (torch.einsum("cthw,c->thw", last[0].float(), weights) * where[0]).cpu()


def _energy(last: Tensor) -> Tensor:
    """Mean square over channels, ``[t, h, w]``."""
    return last[0].float().square().mean(0).cpu()
