#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# README.md shows the settings that the code has and the examples that are compiled.
# usage: readme.sh README QUICKSTART HEP_INFO LOW_LATENCY
set -euo pipefail
readme=$1
quickstart=$2
hep_info=$3
low_latency_example=$4
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
exit "$status"
