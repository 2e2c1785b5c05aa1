#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# README.md shows the settings that the code has, the example that is compiled, and the figures that
# were measured.
# usage: readme.sh README QUICKSTART HEP_INFO RESULTS_TABLE RESULTS
set -euo pipefail
readme=$1
quickstart=$2
hep_info=$3
results_table=$4
results=$5
status=0

compare() {  # WHAT SHOWN ACTUAL
  if [ -z "$2" ] || [ "$2" != "$3" ]; then
    echo "$1 in $readme differs (< README, > actual):"
    diff <(echo "$2") <(echo "$3") || true
    status=1
  fi
}

compare 'the settings table' \
  "$(sed -n '/^| variable /,/^$/p' "$readme")" \
  "$("$hep_info" --settings --markdown)"
compare 'the C example' \
  "$(sed -n '/^```c$/,/^```$/p' "$readme" | sed '1d;$d')" \
  "$(sed -n '/\/\* README: begin \*\//,/\/\* README: end \*\//p' "$quickstart" | sed '1d;$d; s/^  //')"
compare 'the table of figures' \
  "$(sed -n '/^| operation /,/^$/p' "$readme")" \
  "$("$results_table" "$results")"
low_latency=$("$results_table" "$results" --low-latency)
if [ -n "$low_latency" ]; then
  compare 'the table of latencies' "$(sed -n '/^| low-latency operation /,/^$/p' "$readme")" \
    "$low_latency"
fi
exit "$status"
