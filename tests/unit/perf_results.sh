#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What hep_perf writes holds every case that was asked for, and the scripts beside it can read it.
# usage: perf_results.sh HEP_PERF TOOLS
set -euo pipefail
hep_perf=$1
tools=$2
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

"$hep_perf" --backend host --ranks 2 --iterations 1 --tokens 5,70 --hidden 8 --sms 4 \
  --operations dispatch,combine --vary dispatch_blocks=1,2,9 --json "$folder/results.json" \
  >"$folder/table.txt"

python3 - "$folder/results.json" <<'CHECK'
import json
import sys

with open(sys.argv[1]) as file:
    results = json.load(file)
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
CHECK

# One line for each dispatch: two numbers of tokens, two layouts.
[ "$(grep -c '^# best of dispatch' "$folder/table.txt")" -eq 4 ]
# The table leaves out what was tuned: of each number of tokens four cases are left, below two lines.
[ "$("$tools/results_table.py" "$folder/results.json" | wc -l)" -eq 10 ]
"$tools/results_plot.py" "$folder/results.json" >"$folder/picture.svg"
python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$folder/picture.svg"
[ "$(grep -c '<polyline' "$folder/picture.svg")" -eq 4 ]
