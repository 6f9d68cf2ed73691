#!/usr/bin/env bash
# Extraction by a Slurm job array: each task does its part, on whatever host, into one cache on a shared file system.
#
#     sbatch --array=1-32 examples/slurm_extract.sh clips.csv s3://bucket/videos /shared/cache --stream rgb
#
# Tasks may run at the same time, one after the other, or again: each computes only what the cache lacks of its part.
# LOG (default CACHE.logs) gets a file for each task with a line of progress every minute. A task that Slurm stops
# (SIGTERM, exit status 143) has kept what it finished; submit the same array again, or some of its tasks with the number
# of all parts: PARTS=32 sbatch --array=5,9 …. Status 3 says that some clips failed; failures.csv in the cache lists
# them, and --retry-failed tries them again. What Slurm itself says (memory, time limit) is in extract-JOB_TASK.out.
#SBATCH --job-name=extract
#SBATCH --cpus-per-task=8
#SBATCH --mem=24G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.out
set -euo pipefail
manifest=$1 root=$2 cache=$3
shift 3
part=${SLURM_ARRAY_TASK_ID:-1} parts=${PARTS:-${SLURM_ARRAY_TASK_COUNT:-1}}
logs=${LOG:-$cache.logs}
mkdir -p "$logs"
exec >"$logs/part-$part.json" 2>>"$logs/part-$part.log"
export KDCACHE_PROGRESS_S=${KDCACHE_PROGRESS_S:-60} OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

echo "part $part of $parts on $(hostname), job ${SLURM_JOB_ID:-none}, $(date -Iseconds)" >&2
# exec: kdcache takes the place of the batch shell, to which B:TERM goes; without B: only steps of srun get it.
# Fetched sources lie on the disk of the host, not on the shared one.
exec kdcache extract --manifest "$manifest" --root "$root" --out "$cache" --part "$part/$parts" \
  --source-cache "${TMPDIR:-/tmp}/kdcache-sources" --json "$@"
