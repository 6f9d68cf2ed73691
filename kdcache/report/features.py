"""What has to be known of the features below a comparison: that their backbone has seen labels of training clips."""

from __future__ import annotations

from kdcache.report.setting import listed
from kdcache.runs.ablation.conclusion import Conclusion
from kdcache.runs.ablation.seen_labels import SeenLabels


def features_lines(conclusion: Conclusion) -> list[str]:
    """A sentence for the rows that have the counts in common; empty where no row's features are of this kind."""
    rows = [row.name for row in conclusion.comparison.runnable]
    return [_sentence(seen, rows) for seen in conclusion.seen_labels]


def _sentence(seen: SeenLabels, rows: list[str]) -> str:
    whose = "" if len(seen.rows) == len(rows) else f" of {listed(seen.rows)}"
    some = f" in {seen.runs[0]} of {seen.runs[1]} runs" * (seen.runs[0] < seen.runs[1])
    return (
        f"Features{whose}: the backbone was fitted on the labels of {_range(seen.clips)} of the {_range(seen.of)} "
        f"training clips{some}, which are not cross-fitted (`kdcache fit --cross-fit K`): class scores on them, a "
        "teacher's too, are surer than on new clips."
    )


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}"
