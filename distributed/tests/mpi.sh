#!/usr/bin/env bash
# Ranks over MPI on this machine's adapters: the answers of 1 to 4 ranks, ranks that were started for different problems, ranks that
# end while they write, and ranks that are killed (KILLS of them).
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-target/debug/flash-ring}
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
small="--num-heads 4 --num-heads-kv 2 --head-dim 16"
errors=$(mktemp)
folder=$(mktemp -d)
trap 'rm -rf "$errors" "$folder"' EXIT
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

# All ranks without the adapter that they are to have, and ranks in each of several processes.
if mpi 2 "$program" transfer --adapters 99 2> "$errors"; then fail "an adapter that is not there was used"; fi
grep -q "^flash-ring: rank 0: --adapters: there are adapters" "$errors" || fail "rank 0 does not say that it has no such adapter"
if mpi 2 "$program" check --seqlen 8 $small --in-process 2 2> "$errors"; then fail "each process had ranks of its own"; fi
grep -q "mpirun started 2 processes" "$errors" || fail "nothing is said of ranks in several processes"

# A file with many rows and few keys: it is soon computed, and writing O takes long.
write_input() {
  local kv='"dtype":"F32","shape":[1,4,1'
  local of_q=$(($1 * 16))
  local header="{\"q\":{\"dtype\":\"F32\",\"shape\":[1,$1,1,4],\"data_offsets\":[0,$of_q]},"
  header+="\"k\":{$kv,4],\"data_offsets\":[$of_q,$((of_q + 64))]},\"v\":{$kv,256],\"data_offsets\":[$((of_q + 64)),$((of_q + 4160))]}}"
  printf "\\x$(printf %02x $((${#header} % 256)))\\x$(printf %02x $((${#header} / 256)))\\0\\0\\0\\0\\0\\0%s" "$header" > "$folder/in"
  truncate -s $((8 + ${#header} + of_q + 4160)) "$folder/in"
}
write_input 1000
for parts in "" --parts; do
  mpi 3 "$program" run "$folder/in" "$folder/out" $parts | grep -q "1000 rows of 1 sequences, by 3 ranks" || fail "run says nothing"
done
[ "$(ls "$folder" | tr '\n' ' ')" = "in out out.rank0 out.rank1 out.rank2 " ] || fail "run wrote $(ls "$folder")"
rm "$folder"/out*
# Each rank of these would write a part of another file.
for other in "$folder/out2" "$folder/out --parts"; do
  if mpi 2 "$program" run "$folder/in" "$folder/out" : -n 1 "$program" run "$folder/in" $other 2> "$errors"; then
    fail "ranks wrote different files"
  fi
  grep -Eq "rank [0-2] has (OUTPUT|--parts) = " "$errors" || fail "nobody says that files differ"
  [ "$(ls "$folder")" = in ] || fail "$(ls "$folder") is left"
done

ranks_of() { pgrep -x "$(basename "$program")" -a | awk -v mark="$1" 'index($0, mark) { print $1 }'; }
none_of() {
  local start=$(date +%s%3N)
  until [ -z "$(ranks_of "$1")" ]; do
    [ $(($(date +%s%3N) - start)) -lt 10000 ] || fail "a rank lives on"
    sleep 0.1
  done
}

# A rank that ends while they write, by any signal: nothing is left, and no OUTPUT.
write_input 100000
for signal in KILL TERM INT HUP; do
  for parts in "" --parts; do
    mpi 3 "$program" run "$folder/in" "$folder/out" $parts > /dev/null 2> "$errors" &
    job=$!
    until [ -n "$(find "$folder" -name '*.unfinished' -size +0)" ]; do
      kill -0 "$job" 2> /dev/null || fail "run ended before it was killed"
      sleep 0.01
    done
    kill "-$signal" "$(ranks_of "$folder/out" | sed -n "$((RANDOM % 3 + 1))p")"
    if wait "$job"; then fail "mpirun ended well though a rank was ended by $signal"; fi
    none_of "$folder/out"
    [ "$(ls "$folder")" = in ] || fail "$signal $parts: $(ls "$folder") is left"
  done
done
echo "ended a rank by KILL, TERM, INT and HUP while it wrote: nothing is left"
# A rank that may write no large files.
if mpi 3 bash -c "[ \$OMPI_COMM_WORLD_RANK != 1 ] || ulimit -f 30000; exec '$program' run '$folder/in' '$folder/out'" 2> "$errors"; then
  fail "a file was written beyond a limit"
fi
grep -q "^flash-ring: rank 1: .*out.unfinished: File too large" "$errors" || fail "rank 1 does not say that its file is too large"
[ "$(ls "$folder")" = in ] || fail "$(ls "$folder") is left"

# A rank that is killed in the middle: the others end within ten seconds, and mpirun names it.
for round in $(seq "${KILLS:-1}"); do
  mark=$$$round
  mpi 4 "$program" bench --seqlen 101 $small --causal --repeats 100000 --seed "$mark" --svg "$folder/figure" > /dev/null 2> "$errors" &
  job=$!
  until [ "$(ranks_of "--seed $mark" | wc -l)" = 4 ]; do sleep 0.1; done
  # They compile, greet each other, and then compute.
  sleep "${BEFORE_KILL:-4}"
  kill -KILL "$(ranks_of "--seed $mark" | sed -n "$((round % 4 + 1))p")"
  start=$(date +%s%3N)
  if wait "$job"; then fail "mpirun ended well though a rank was killed"; fi
  # mpirun may end a moment before the last of them.
  none_of "--seed $mark"
  took=$(($(date +%s%3N) - start))
  echo "killed a rank: the others ended within $took ms"
  [ "$took" -lt 10000 ] || fail "the others took $took ms to end"
  [ "$(ls "$folder")" = in ] || fail "$(ls "$folder") is left"
  grep -q "exited on signal 9" "$errors" || fail "mpirun does not name the rank"
done
echo "ranks over MPI: well"
