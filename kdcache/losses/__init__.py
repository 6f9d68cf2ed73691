"""Each distillation loss once, with its equation; a file for each paper. All return one value for each sample,
``float32 [B]``.

The teacher's side is always a constant: no gradient flows into it. Everything is computed in float32, also inside
autocast: dot products of post-ReLU maps pass 100, where a bfloat16 score is off by 0.4 before the exponential.
"""

from __future__ import annotations

from kdcache.losses.anticipation import (
    Distance,
    Reduction,
    attention_entropy,
    discrepancy,
    l_c,
    l_d,
    l_direct,
    l_tilde,
    phi,
    vectors,
)
from kdcache.losses.divergence import kl
from kdcache.losses.early import BANDWIDTHS, l_cls, l_mmd, l_mse, l_rank, l_self, l_ts
from kdcache.losses.imprint import l_ms
from kdcache.losses.relation import l_ir, l_rep, relation

__all__ = [
    "BANDWIDTHS",
    "Distance",
    "Reduction",
    "attention_entropy",
    "discrepancy",
    "kl",
    "l_c",
    "l_cls",
    "l_d",
    "l_direct",
    "l_ir",
    "l_mmd",
    "l_ms",
    "l_mse",
    "l_rank",
    "l_rep",
    "l_self",
    "l_tilde",
    "l_ts",
    "phi",
    "relation",
    "vectors",
]
