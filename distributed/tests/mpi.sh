#!/usr/bin/env bash
# Ranks over MPI on this machine's adapters: the answers of 1 to 4 ranks, ranks that were started for different problems, and
# ranks that are killed (KILLS of them).
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-target/debug/flash-ring}
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
small="--num-heads 4 --num-heads-kv 2 --head-dim 16"
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
mpi() { mpirun --allow-run-as-root --oversubscribe -n "$@"; }
fail() { cat "$errors" >&2; echo "$1" >&2; exit 1; }

for ranks in 1 2 3 4; do
  mpi "$ranks" "$program" check --scheme zigzag --causal --seqlen 101 $small --backward
done
mpi 3 "$program" check --scheme ring --window-left 30 --window-right 7 --dropout 0.2 --element f32 --seqlen 101 $small --backward
mpi 3 "$program" check --no-shared-memory --scheme zigzag --causal --seqlen 101 $small --backward
mpi 3 "$program" check --scheme zigzag --causal --sink --seqlen 101 $small --backward
# Messages of many pieces.
large="--scheme ring --window-left 8 --window-right 8 --seqlen 20000 --element f32 --num-heads 1 --num-heads-kv 1 --head-dim 256"
mpi 2 "$program" check $large
mpi 2 "$program" check $large --no-shared-memory
mpi 3 "$program" transfer --bytes 5000001

# Ranks for different problems: both ends, and one says what differs.
start=$SECONDS
if mpi 1 "$program" check --seqlen 100 $small : -n 1 "$program" check --seqlen 101 $small 2> "$errors"; then
  fail "ranks for different problems ended well"
fi
grep -q "has seqlen_q = 10" "$errors" || fail "no rank said what differs"
[ $((SECONDS - start)) -lt 20 ] || fail "ranks for different problems took $((SECONDS - start)) s to end"

# A rank that is killed in the middle: the others end within ten seconds, and mpirun names it.
for round in $(seq "${KILLS:-1}"); do
  mark=$$$round
  mpi 4 "$program" bench --seqlen 101 $small --causal --repeats 100000 --seed "$mark" > /dev/null 2> "$errors" &
  job=$!
  ranks_of() { pgrep -x "$(basename "$program")" -a | awk -v mark="$mark" '$0 ~ "--seed " mark { print $1 }'; }
  until [ "$(ranks_of | wc -l)" = 4 ]; do sleep 0.1; done
  # They compile, greet each other, and then compute.
  sleep "${BEFORE_KILL:-4}"
  kill -KILL "$(ranks_of | sed -n "$((round % 4 + 1))p")"
  start=$(date +%s%3N)
  if wait "$job"; then fail "mpirun ended well though a rank was killed"; fi
  # mpirun may end a moment before the last of them.
  until [ -z "$(ranks_of)" ]; do
    [ $(($(date +%s%3N) - start)) -lt 10000 ] || fail "a rank lives on"
    sleep 0.1
  done
  took=$(($(date +%s%3N) - start))
  echo "killed a rank: the others ended within $took ms"
  [ "$took" -lt 10000 ] || fail "the others took $took ms to end"
  grep -q "exited on signal 9" "$errors" || fail "mpirun does not name the rank"
done
echo "ranks over MPI: well"
