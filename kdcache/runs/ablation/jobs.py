"""Jobs with a progress bar that counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdcache.log import logger
from kdcache.progress import progress
from kdcache.runs.ablation.pool import Job, run_jobs

STAGES = "stages"  # subfolder of a comparison: trained teachers that its runs share


def run_with_bar(
    jobs: Sequence[Job], workers: int, folder: Path, what: str, check: Callable[[Job], object] | None = None
) -> dict[str, str]:
    """Run jobs and count them; ``check`` is called for each that succeeded.

    Args:
        jobs: in this order.
        workers: processes.
        folder: of the comparison.
        what: the jobs are called beside the bar.
        check: what it raises ends the comparison.

    Returns:
        Label of each job that failed → what went wrong.
    """
    problems: dict[str, str] = {}
    with progress(what, len(jobs), "runs", shown=len(jobs) > 0) as bar:

        def on_end(job: Job, problem: str) -> None:
            bar.update()
            bar.note(job.label)
            if problem:
                problems[job.label] = problem
                logger.warning(f"{job.label} failed: {problem}")
            elif check is not None:
                check(job)

        run_jobs(jobs, workers, folder / STAGES, on_end)
    return problems
