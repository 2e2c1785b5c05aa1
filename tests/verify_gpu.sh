#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs on a machine with GPUs what proves the cuda backend and, only if all of it passed, writes
# tests/verified.json. Neither compiles nor needs git: a build folder and the tree that it is of are
# enough. Steps run one after the other, because each uses all GPUs and some have deadlines.
# usage: verify_gpu.sh [--build DIR] [--commit SHA] [--logs DIR] [--limit SECONDS] [--only STEP]
#   --build   an up-to-date build folder; default: build
#   --commit  what is verified; default: HEAD of the tree's git repository
#   --logs    where summary.txt, log.txt and a copy of the record go; default: BUILD/verify_gpu
#   --limit   the time of all steps together, and twice that of one; default: 540
#   --only    runs the steps whose names contain STEP, and writes no record
set -euo pipefail
cd "$(dirname "$0")/.."

build=build commit='' logs='' limit=540 only=''
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || { echo "verify_gpu: $1 needs a value, or is no option" >&2; exit 2; }
  case $1 in
    --build) build=$2 ;;
    --commit) commit=$2 ;;
    --logs) logs=$2 ;;
    --limit) limit=$2 ;;
    --only) only=$2 ;;
    *) echo "verify_gpu: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
logs=${logs:-$build/verify_gpu}
mkdir -p "$logs"
summary=$logs/summary.txt log=$logs/log.txt
rm -f "$logs/verified.json"
: >"$summary"
: >"$log"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
results=$work/results
: >"$results"
failures=0

say() {
  echo "$*" | tee -a "$summary"
}

give_up() {
  say "NOT verified: $*"
  exit 1
}

# ------------------------------------------------------------------------------- what is there

suite=$build/tests/mpi_suite
if [ -z "$commit" ]; then
  commit=$(git rev-parse HEAD 2>/dev/null) ||
    give_up 'this is no git repository: name the commit with --commit'
  git diff --quiet HEAD || give_up 'the tree differs from HEAD: commit it, or name it with --commit'
fi
for file in "$suite" "$build"/tests/{fault_suite,dead_context_test,verified_sources}; do
  [ -f "$file" ] || give_up "there is no $file: build with the option cuda"
done
[ "$(tests/verified.py --sources)" = "$(cat "$build/tests/verified_sources")" ] ||
  give_up "$build is not of this tree: run ninja -C $build"

# A GPU has the name here that CUDA_VISIBLE_DEVICES knows it by.
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
else
  mapfile -t gpus < <(nvidia-smi --query-gpu=uuid --format=csv,noheader 2>/dev/null || true)
fi
[ ${#gpus[@]} -gt 0 ] || give_up 'there is no GPU here'
HEP_VERIFY_GPUS=$(IFS=,; echo "${gpus[*]}")
export HEP_VERIFY_GPUS
ranks=$((${#gpus[@]} < 4 ? ${#gpus[@]} : 4)) # at most one a GPU
say "commit $commit on ${#gpus[@]} GPUs"

# The processor does this while the GPUs are at work.
tests/verified.py --fingerprint >"$work/fingerprint" 2>"$work/fingerprint.log" &
fingerprint=$!

# ---------------------------------------------------------------------------------------- steps

wanted() {  # NAME
  [[ $1 == *"$only"* ]]
}

not_run() {  # NAME WHY
  wanted "$1" || return 0
  printf '%s\tnot run\t%s\n' "$1" "$2" >>"$results"
  say "not run: $1: $2"
}

# Runs a command that takes options of GoogleTest. Whatever it skips, something must have passed.
step() {  # NAME COMMAND...
  local name=$1 report="$work/$1.xml" status=0 begin=$SECONDS counts
  local left=$((limit - SECONDS)) most=$((limit / 2))
  shift
  wanted "$name" || return 0
  if [ "$left" -le 0 ]; then
    failures=$((failures + 1))
    say "FAILED: $name: the $limit s of --limit were over before it began"
    return 0
  fi
  printf '===== %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=10 "$((left < most ? left : most))" "$@" "--gtest_output=xml:$report" \
    >"$work/output" 2>&1 || status=$?
  cat "$work/output" >>"$log"
  counts=$(tests/verified.py --count "$report") || status=${status/#0/1}
  if [ "$status" = 0 ]; then
    printf '%s\tran\t%s\n' "$name" "$report" >>"$results"
    say "passed: $name: $counts, $((SECONDS - begin)) s"
    return 0
  fi
  failures=$((failures + 1))
  say "FAILED: $name: exit status $status, $counts, $((SECONDS - begin)) s"
  { grep -E '^\[  FAILED  \] [A-Za-z/0-9_]+\.|^process of rank' "$work/output" || true; } |
    sort -u | head -40 | tee -a "$summary"
  tail -30 "$work/output" | tee -a "$summary"
}

# Open MPI runs a rank a process. What stands before the suite may choose the process's GPU.
mpi() {  # NAME COMMAND...
  local name=$1
  shift
  step "$name" mpirun -np "$ranks" --allow-run-as-root --oversubscribe "$@"
}
own_gpu='IFS=, read -r -a gpus <<<"$HEP_VERIFY_GPUS"
  CUDA_VISIBLE_DEVICES=${gpus[OMPI_COMM_WORLD_LOCAL_RANK]} exec "$@"'

# What depends on how memory is mapped.
mapping='--gtest_filter=Destroy.*:Lifecycle.*:RandomCases.*:Register.*'

step '2 ranks' "$suite" --backend cuda --ranks 2
step '4 ranks' "$suite" --backend cuda --ranks 4 --cases 100
step '2 ranks with HEP_MEMORY=ipc' \
  env HEP_MEMORY=ipc "$suite" --backend cuda --ranks 2 --cases 100 "$mapping"
step "graphs of $ranks ranks" \
  "$suite" --backend cuda --ranks "$ranks" --replays 500 '--gtest_filter=Graph.*'
if [ "$ranks" -ge 2 ]; then
  mpi 'processes that see their own GPU' bash -c "$own_gpu" own_gpu "$suite" --backend cuda
  mpi 'processes with HEP_MEMORY=ipc' \
    env HEP_MEMORY=ipc "$suite" --backend cuda --cases 100 "$mapping"
else
  why='needs 2 GPUs, because processes that share a GPU take turns and never run together'
  not_run 'graphs between GPUs' 'needs 2 GPUs, because graphs on one GPU may not run together'
  not_run 'processes that see their own GPU' "$why"
  not_run 'processes with HEP_MEMORY=ipc' "$why"
fi
if [ "${#gpus[@]}" -ge 3 ]; then
  for victim in 0 1; do
    step "faults of rank $victim" "$build/tests/fault_suite" --backend cuda --victim "$victim"
  done
else
  not_run 'faults' 'needs 3 GPUs, one for each of three processes'
fi
step 'dead contexts' "$build/tests/dead_context_test"
device_test=$(find "$build/tests" -name device_test -type f | head -1)
if [ -n "$device_test" ]; then
  step 'device functions' "$device_test"
else
  not_run 'device functions' "there is no device_test in $build"
fi
step 'soak of 60 s' "$suite" --backend cuda --ranks 2 --soak 60 '--gtest_filter=Soak.*'
# Checked kernels of one rank: those of several may have to wait for one another. Creation tries kinds of
# memory that a machine need not have, which is no error.
step 'memcheck' compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 \
  "$suite" --backend cuda --ranks 1 --cases 20 '--gtest_filter=RandomCases.*'

# --------------------------------------------------------------------------------------- record

wait "$fingerprint" || {
  cat "$work/fingerprint.log" >&2
  give_up 'the fingerprint could not be taken'
}
[ "$failures" = 0 ] || give_up "failed steps: $failures; the log is $log"
[ -z "$only" ] || give_up "only the steps with \"$only\" in their names were run, and passed"
tests/verified.py --write "$results" --parts "$work/fingerprint" --commit "$commit" ||
  give_up 'the record could not be written'
cp tests/verified.json "$logs"
say "verified: commit $commit in $SECONDS s; commit tests/verified.json"
