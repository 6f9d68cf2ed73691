"""Stage three: what a trained run says of a video or a skeleton file, while it unfolds or as a whole."""

from __future__ import annotations

from kdcache.runs.online.answer import Prediction
from kdcache.runs.online.prediction import predict

__all__ = ["Prediction", "predict"]
