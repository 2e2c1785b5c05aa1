#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What hep_perf writes holds every case that was asked for, and the scripts beside it can read it.
# usage: perf_results.sh HEP_PERF TOOLS
set -euo pipefail
hep_perf=$1
tools=$2
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

run() {
  "$hep_perf" --backend host --ranks 2 --iterations 1 --tokens 5,70 --sms 4 \
    --json "$folder/results.json" "$@"
}
run --low-latency --hidden 8 --layouts flat,expert-padded --idle-ranks 0,1 >"$folder/latency.txt"
python3 - "$folder/results.json" <<'CHECK'
import json
import sys

with open(sys.argv[1]) as file:
    results, = json.load(file)
assert results["rows"] == [] and results["overlap"] == []
found = sorted((row["tokens"], row["idle_ranks"], row["layout"], row["operation"])
               for row in results["low_latency"])
expected = sorted((tokens, idle, layout, operation + half)
                  for tokens in (5, 70) for idle in (0, 1) for layout in ("flat", "expert-padded")
                  for operation in ("dispatch", "combine") for half in ("", "-send", "-receive"))
assert found == expected, found
for row in results["low_latency"]:
    assert row["wrong"] == 0 and 0 < row["p50_us"] <= row["p99_us"] <= row["max_us"], row
CHECK
# A line for each case, below two lines; none is of the work by which libraries compare.
[ "$("$tools/results_table.py" "$folder/results.json" --low-latency --all | wc -l)" -eq 50 ]
[ -z "$("$tools/results_table.py" "$folder/results.json" --low-latency)" ]

run --hidden 8 --operations dispatch,combine --vary dispatch_blocks=1,2,9 >"$folder/table.txt"
run --append --hidden 256 --operations routing,dispatch --type bf16,fp8-e4m3 \
  --quantize none,ue8m0 >"$folder/formats.txt"

python3 - "$folder/results.json" <<'CHECK'
import json
import sys

with open(sys.argv[1]) as file:
    results, formats = json.load(file)
found = sorted((row["tokens"], row["operation"], row["layout"], str(row["tuning"]))
               for row in results["rows"])
# 9 blocks are more than the SM budget; combine has nothing to do with dispatch_blocks.
expected = sorted((tokens, operation, layout, str({"dispatch_blocks": blocks} if blocks else {}))
                  for tokens in (5, 70) for operation in ("dispatch", "combine")
                  for layout in ("flat", "expert-major") for blocks in (0, 1, 2)
                  if blocks == 0 or operation == "dispatch")
assert found == expected, found
assert all(row["wrong"] == 0 and row["median_us"] > 0 for row in results["rows"])
assert len(results["notes"]) == 1 and "sm_budget" in results["notes"][0], results["notes"]
# Of each dispatch the best of three.
assert len(results["plan"]) == 4, results["plan"]
for check in results["plan"]:
    times = [row["median_us"] for row in results["rows"] if row["operation"] == "dispatch" and
             all(row[key] == check[key] for key in ("tokens", "layout"))]
    assert len(times) == 3 and check["best_us"] == min(times) <= check["chosen_us"], check

# A row of 256 elements has two scales; the routing is the same for all formats.
found = sorted({(row["type"], row["scales"], row["quantize"], row["bytes_per_row"])
                for row in formats["rows"] if row["operation"] == "dispatch"})
assert found == [("bf16", "none", "none", 512), ("fp8-e4m3", "fp32", "none", 256 + 8),
                 ("fp8-e4m3", "ue8m0", "ue8m0", 256 + 2)], found
assert [row["tokens"] for row in formats["rows"] if row["operation"] == "routing"] == [5, 70]
assert all(row["wrong"] == 0 for row in formats["rows"]) and formats["plan"] == []
CHECK

# One line for each dispatch: two numbers of tokens, two layouts.
[ "$(grep -c '^# best of dispatch' "$folder/table.txt")" -eq 4 ]
# The table leaves out what was tuned: of each number of tokens four cases are left, and a routing and
# six dispatches of the second run, below two lines. None is of the work by which libraries compare.
[ "$("$tools/results_table.py" "$folder/results.json" --all | wc -l)" -eq 24 ]
[ "$("$tools/results_table.py" "$folder/results.json" | wc -l)" -eq 2 ]
# A repeated run replaces what the first one measured.
run --append --hidden 8 --operations dispatch,combine >"$folder/again.txt"
[ "$("$tools/results_table.py" "$folder/results.json" --all | wc -l)" -eq 24 ]
if run --append --json "$folder/table.txt" 2>"$folder/error.txt"; then exit 1; fi
grep -q 'is no list of runs' "$folder/error.txt"
"$tools/results_plot.py" "$folder/results.json" >"$folder/picture.svg"
python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$folder/picture.svg"
[ "$(grep -c '<polyline' "$folder/picture.svg")" -eq 4 ]
