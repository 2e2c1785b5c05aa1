#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# README.md shows the settings that the code has, the examples that are compiled, and the figures that
# were measured.
# usage: readme.sh README QUICKSTART HEP_INFO RESULTS_TABLE RESULTS LOW_LATENCY
set -euo pipefail
readme=$1
quickstart=$2
hep_info=$3
results_table=$4
results=$5
low_latency_example=$6
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
example() {  # FILE
  sed -n '/\/\* README: begin \*\//,/\/\* README: end \*\//p' "$1" | sed '1d;$d; s/^  //'
}
compare 'the C examples' \
  "$(sed -n '/^```c$/,/^```$/p' "$readme" | grep -v '^```')" \
  "$(example "$quickstart"; example "$low_latency_example")"
compare 'the table of figures' \
  "$(sed -n '/^| operation /,/^$/p' "$readme")" \
  "$("$results_table" "$results")"
low_latency=$("$results_table" "$results" --low-latency)
if [ -n "$low_latency" ]; then
  compare 'the table of latencies' "$(sed -n '/^| low-latency operation /,/^$/p' "$readme")" \
    "$low_latency"
fi
exit "$status"
