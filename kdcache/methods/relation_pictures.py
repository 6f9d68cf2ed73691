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
    scale = min(float(v.min()) for v in said.values()), max(float(v.max()) for v in said.values())
    what = {"evidence of A": "appearance: what is added to the class's logit", "evidence of S": "imitated motion"}
    pictures = [
        Picture(title=title, values=values, over=True, note=what[title], scale=scale) for title, values in said.items()
    ]
    if net.fusion.weigh is not None:
        share = (w[1] / (w[0] + w[1])).sort().values.cpu()
        note = f"of each channel, sorted; mean {float(share.mean()):.3f}"
        pictures.append(Picture(title="weight of motion", values=share, note=note, in_time=False))
    if "flow" in seen and options.distils:
        energy = {"motion of S": _energy(out["S.last"])}
        energy["motion of F"] = _energy(load("teacher", branch(options, data, "teacher"))(seen["flow"])["last"])
        note = "mean square of the map's channels; the teacher's is of flow"
        pictures += [Picture(title=title, values=each, note=note) for title, each in energy.items()]
    return pictures


def _evidence(last: Tensor, where: Tensor, weights: Tensor) -> Tensor:
    """What each position adds to a logit, ``[t, h, w]``: its weight in z times the product with ``weights`` ``[d]``."""
    return (torch.einsum("cthw,c->thw", last[0].float(), weights) * where[0]).cpu()


def _energy(last: Tensor) -> Tensor:
    """Mean square over channels, ``[t, h, w]``."""
    return last[0].float().square().mean(0).cpu()
