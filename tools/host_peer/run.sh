#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Measures the host backend beside a program that packs, calls MPI_Alltoallv and adds up. Runs both
# with 2 and 4 ranks, REPEATS times in turn; prints each time over that of a memcpy of the rows that
# a rank receives, measured in the same process; appends JSON lines to FILE.
# usage: tools/host_peer/run.sh FILE [REPEATS]   (after tools/build.sh)
set -euo pipefail
file=$(realpath -m "$1")
repeats=${2:-3}
cd "$(dirname "$0")/../.."

tokens=4096 hidden=7168 top_k=8 experts=32 iterations=10
program=$(mktemp)
lines=$(mktemp)
trap 'rm -f "$program" "$lines"' EXIT
mpicc -std=c99 -O3 -march=native -o "$program" tools/host_peer/all_to_all.c
# More ranks than cores wait without spinning.
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
commit=$(git describe --always --dirty --abbrev=10)

for _ in $(seq "$repeats"); do
  for ranks in 2 4; do
    build/tools/hep_perf --backend host --ranks $ranks --tokens $tokens --hidden $hidden \
      --top-k $top_k --experts $experts --operations dispatch,combine --iterations $iterations \
      --json "$lines" >/dev/null
    mpirun --oversubscribe -np $ranks "$program" $tokens $hidden $top_k $experts $iterations \
      "$commit" >>"$lines"
  done
done
cat "$lines" >>"$file"

python3 - "$lines" <<'TABLE'
import json
import sys

times = {}
with open(sys.argv[1]) as lines:
    for row in map(json.loads, lines):
        if row["wrong"] != 0:
            sys.exit(f"{row['operation']} has {row['wrong']} wrong values")
        key = row["operation"], row["layout"], row.get("library", "libhybridep"), row["ranks"]
        times.setdefault(key, []).append(row["ceiling_gbps"] / row["alg_gbps"])
print("| operation | layout | program | ranks | time over that of a memcpy |\n|---|---|---|---|---|")
for key, ratios in sorted(times.items()):
    print("|", *(f"{cell} |" for cell in key), ", ".join(f"{ratio:.1f}" for ratio in ratios), "|")
TABLE
