"""Metrics of answers at several anticipation times: those of ``kdcache.metrics.topk`` at each of them.

``probs`` is float ``[n, N, C]``: class probabilities at each of N times before the action; ``y`` is int ``[n]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdcache.metrics.topk import Classes, Scores, class_mean_recall, top_k


def at_time(metric: str, tau_s: float) -> str:
    """Name of a metric τ seconds before the action: ``top5``, 1.0 → ``top5@1``."""
    return f"{metric}@{tau_s:g}"


def measure_times(probs: Scores, y: Classes, times: Sequence[float]) -> dict[str, float]:
    """``top1@τ``, ``top5@τ`` and ``mean_top5_recall@τ`` in per cent for each of the N ``times`` τ, in seconds.

    Raises:
        ValueError: scores that are not finite or do not go with ``y`` and ``times``.
    """
    if probs.shape[1] != len(times):
        raise ValueError(f"probabilities {probs.shape} are not at {len(times)} times")
    measured = {}
    for i, tau_s in enumerate(times):
        at = probs[:, i]
        measured[at_time("top1", tau_s)] = top_k(at, y, 1)
        measured[at_time("top5", tau_s)] = top_k(at, y, 5)
        measured[at_time("mean_top5_recall", tau_s)] = class_mean_recall(at, y, 5)
    return measured


def in_words(measured: Mapping[str, float]) -> str:
    """Metrics on one line; those at several times as one curve: ``top5@2…0.25 20.1 21.3 …``."""
    curves: dict[str, dict[str, float]] = {}
    for name, value in measured.items():
        metric, _, at = name.partition("@")
        curves.setdefault(metric, {})[at] = value
    parts = []
    for metric, curve in curves.items():
        times = list(curve)
        span = f"@{times[0]}…{times[-1]}" if len(times) > 1 else f"@{times[0]}" * bool(times[0])
        parts.append(f"{metric}{span} {' '.join(f'{value:.1f}' for value in curve.values())}")
    return "  ".join(parts)
