#!/usr/bin/env bash
# A job as a cluster runs it: no terminal, standard error in a log, results as JSON.
#
#     examples/cluster_log.sh VIDEOS WORK [OPTIONS OF EXTRACT]     # VIDEOS/CLASS/NAME.mp4
#
# WORK/job.log gets a line of progress every 30 seconds (KDCACHE_PROGRESS_S=…), WORK/result.json the result. A job that
# is stopped (SIGTERM, exit status 143) is submitted again and goes on where it was; status 3 of extract says that some
# clips failed, which does not keep the others from being trained on.
set -euo pipefail
videos=$1 work=$2
shift 2
mkdir -p "$work"
exec 2>>"$work/job.log"

kdcache extract --dataset folder --root "$videos" --stream tsm/clip --levels 10 --out "$work/cache" \
  --json "$@" >"$work/extract.json" || (($? == 3))
kdcache train early --shards "$work/cache" --out "$work/run" \
  --set epochs="${EPOCHS:-100}" --json >"$work/result.json"
