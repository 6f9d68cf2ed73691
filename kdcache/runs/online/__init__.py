"""Stage three: what a trained run says of a video or a skeleton file while it unfolds."""

from __future__ import annotations

from kdcache.runs.online.prediction import Prediction, predict

__all__ = ["Prediction", "predict"]
