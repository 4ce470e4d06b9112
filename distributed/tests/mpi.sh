#!/usr/bin/env bash
# Ranks over MPI on this machine's adapters: the answers of 1 to 4 ranks, and ranks that are killed.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-target/debug/flash-ring}
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
mpi() { mpirun --allow-run-as-root --oversubscribe -n "$@"; }

for ranks in 1 2 3 4; do
  mpi "$ranks" "$program" check --scheme zigzag --causal --seqlen 101 --num-heads 4 --num-heads-kv 2 --head-dim 16 --backward
done
mpi 3 "$program" check --scheme ring --window-left 30 --window-right 7 --dropout 0.2 --element f32 \
  --seqlen 101 --num-heads 4 --num-heads-kv 2 --head-dim 16 --backward

# A rank that is killed in the middle: the others end within ten seconds, and mpirun names it.
for round in $(seq "${KILLS:-3}"); do
  errors=$(mktemp)
  mpi 4 "$program" bench --seqlen 101 --num-heads 4 --num-heads-kv 2 --head-dim 16 --causal --repeats 100000 \
    > /dev/null 2> "$errors" &
  job=$!
  # Once all ranks have greeted each other, each waits for the others again and again.
  until victim=$(pgrep -P "$job" -f -- --repeats | sed -n "$((round % 4 + 1))p") && [ -n "$victim" ]; do sleep 0.1; done
  sleep 2
  kill -KILL "$victim"
  start=$SECONDS
  if wait "$job"; then echo "mpirun ended well though a rank was killed" >&2; exit 1; fi
  [ $((SECONDS - start)) -lt 10 ] || { echo "the others took $((SECONDS - start)) s to end" >&2; exit 1; }
  grep -q "exited on signal 9" "$errors" || { cat "$errors" >&2; exit 1; }
  rm "$errors"
done
echo "ranks over MPI: well"
