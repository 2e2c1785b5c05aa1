#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What the benchmarks write holds every case that was asked for, survives an interruption, and can
# be read by the scripts beside them.
# usage: perf_results.sh HEP_PERF HEP_LATENCY TOOLS
set -euo pipefail
hep_perf=$1
hep_latency=$2
tools=$3
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

common=(--backend host --ranks 2 --iterations 1 --tokens 5,70 --sms 4 --commit abc)
"$hep_latency" "${common[@]}" --json "$folder/latency" \
  --hidden 8 --layouts flat,expert-padded --idle-ranks 0,1 >"$folder/latency.txt"
"$hep_perf" "${common[@]}" --json "$folder/perf" \
  --hidden 256 --operations routing,dispatch --type bf16,fp8-e4m3 --quantize none,ue8m0 \
  >"$folder/perf.txt"

python3 - "$folder" <<'CHECK'
import json
import sys


def read(name):
    with open(f"{sys.argv[1]}/{name}") as file:
        rows = [json.loads(line) for line in file]
    with open(f"{sys.argv[1]}/{name}.txt") as file:  # a line a case, below a head
        printed = [line for line in file if not line.startswith(("#", "operation"))]
    assert len(printed) == len(rows), printed
    for row in rows:
        assert row["schema"] == 1 and row["commit"] == "abc" and row["ranks"] == 2, row
        assert row["wrong"] == 0 and row["date"].endswith("Z") and row["cpu"], row
    return rows


rows = read("latency")
found = sorted((row["tokens"], row["idle_ranks"], row["layout"], row["operation"]) for row in rows)
expected = sorted((tokens, idle, layout, operation + step)
                  for tokens in (5, 70) for idle in (0, 1) for layout in ("flat", "expert-padded")
                  for operation in ("dispatch", "combine") for step in ("", "-send", "-receive"))
assert found == expected, found
assert all(0 < row["p50_us"] <= row["p99_us"] <= row["max_us"] for row in rows)

# A row of 256 elements has two scales; the routing is the same for all formats.
rows = read("perf")
found = sorted({(row["type"], row["scales"], row["quantize"], row["bytes_per_row"])
                for row in rows if row["operation"] == "dispatch"})
assert found == [("bf16", "none", "none", 512), ("fp8-e4m3", "fp32", "none", 256 + 8),
                 ("fp8-e4m3", "ue8m0", "ue8m0", 256 + 2)], found
assert [row["tokens"] for row in rows if row["operation"] == "routing"] == [5, 70]
for row in rows:
    assert 0 < row["min_us"] <= row["median_us"], row
    assert row["operation"] == "routing" or 0 < row["remote_gbps"] < row["alg_gbps"], row
    assert ("ceiling_gbps" in row) == (row["operation"] == "dispatch"), row
CHECK

# Tables have two lines above the cases. None is of the work by which libraries are compared.
lines() {  # ARGUMENTS OF RESULTS_TABLE
  "$tools/results_table.py" "$@" | wc -l
}
[ "$(lines latency "$folder/latency" --all)" -eq 50 ]
[ "$(lines latency "$folder/latency")" -eq 2 ]
[ "$(lines perf "$folder/perf" --all)" -eq 16 ]
[ "$(lines perf "$folder/perf")" -eq 2 ]
# A dispatch on two numbers of tokens of the same hidden size shares a line.
[ "$(lines hidden "$folder/perf")" -eq 2 ]
[ "$(lines hidden "$folder/perf" --all)" -gt 2 ]

# A second run appends. Of repeated cases the latest counts.
"$hep_perf" "${common[@]}" --json "$folder/perf" --hidden 256 --operations dispatch >/dev/null
[ "$(wc -l <"$folder/perf")" -eq 18 ]
[ "$(lines perf "$folder/perf" --all)" -eq 16 ]

# An interrupted run keeps the cases that were measured.
python3 - "$hep_perf" "$folder/interrupted" <<'CHECK'
import json
import signal
import subprocess
import sys

hep_perf, path = sys.argv[1:]
tokens = ",".join(str(tokens) for tokens in range(1, 1000))
with subprocess.Popen([hep_perf, "--backend", "host", "--ranks", "2", "--hidden", "8", "--tokens",
                       tokens, "--json", path], stdout=subprocess.PIPE, text=True) as process:
    while not process.stdout.readline().startswith("layer"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
assert process.returncode == -signal.SIGINT, process.returncode
with open(path) as file:
    assert len([json.loads(line) for line in file]) >= 3
CHECK

# A value that is wrong, a case that was not checked, and a file that cannot be written are errors.
sed 's/"wrong":0/"wrong":3/' "$folder/perf" >"$folder/wrong"
if "$tools/results_table.py" perf "$folder/wrong" 2>"$folder/error"; then exit 1; fi
grep -q 'has 3 wrong values' "$folder/error"
if "$hep_perf" "${common[@]}" --json "$folder/none/file" 2>"$folder/error"; then exit 1; fi
grep -q 'cannot open' "$folder/error"
if "$hep_perf" "${common[@]}" --top-k 99 2>"$folder/error"; then exit 1; fi
grep -q 'more than --experts' "$folder/error"
