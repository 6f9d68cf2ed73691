"""Jobs with a progress bar that counts them, and how many processes take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdcache.cluster.options import Cluster, asked_of
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.progress import progress
from kdcache.runs.ablation.pool import Job, Pool, run_jobs
from kdcache.runtime import free_bytes, resolve_device, worker_count
from kdcache.store.commit import shard_files

STAGES = "stages"  # subfolder of a comparison: trained teachers that its runs share

PROCESS_BYTES = 3 * 2**29  # torch, a head and its optimiser, batches on their way [reconstructed]


TOGETHER = 50
"""Runs that train in one pass on a GPU. [reconstructed]"""


def workers_for(workers: int | str, shards: Path, device: str) -> int:
    """Processes of a comparison; for ``auto`` one a core, as far as memory allows, that of the GPU included.

    Each process may hold all that the cache has, beside torch and a network.

    Raises:
        OptionError: neither a number from 1 on nor ``auto``.
    """
    held = shard_files(shards) if workers == "auto" and shards.is_dir() else []
    each = PROCESS_BYTES + sum(path.stat().st_size for path in held)
    count = worker_count(workers, each)
    if workers == "auto" and (on := resolve_device(device)).type == "cuda":
        return max(1, min(count, free_bytes(on) // each))
    return count


def together_for(together: int | str, device: str) -> int:
    """How many runs train in one pass at most: as many as were asked for; ``off``: 1; ``auto``: ``TOGETHER`` on a GPU,
    1 on a CPU, which gains where heads are tiny alone.

    Raises:
        OptionError: something else.
    """
    if together == "off":
        return 1
    if together == "auto":
        return TOGETHER if resolve_device(device).type == "cuda" else 1
    if isinstance(together, bool) or not isinstance(together, int) or together < 1:
        raise OptionError(f"together is {together!r}: give a number from 1 on, auto or off.")
    return together


def pool_for(
    workers: int | str | None, cluster: Cluster | None, together: int | str, shards: Path, device: str
) -> Pool:
    """Where the jobs of a comparison are run; what of the arguments stands for what is said in ``ablate``.

    Raises:
        OptionError: no such numbers.
    """
    if cluster is not None:
        return Pool(asked_of(cluster, workers), together_for(together, "cpu"), cluster, device)
    return Pool(workers_for(1 if workers is None else workers, shards, device), together_for(together, device))


def run_with_bar(
    jobs: Sequence[Job], pool: Pool, folder: Path, what: str, check: Callable[[Job], object] | None = None
) -> dict[str, str]:
    """Run jobs and count them; ``check`` is called for each that succeeded.

    Args:
        jobs: in this order.
        pool: where they are run.
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

        run_jobs(jobs, pool, folder / STAGES, on_end)
    return problems
