#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The documents show the settings that the code has, the examples that are compiled, what the model
# of the plan expects, and what combine signals.
# usage: readme.sh README GUIDE HEP_INFO QUICKSTART_CUDA QUICKSTART LOW_LATENCY TOOLS_README
set -euo pipefail
readme=$1
guide=$2
hep_info=$3
quickstart_cuda=$4
quickstart=$5
low_latency=$6
tools=$7
status=0

compare() {  # WHAT DOCUMENT SHOWN ACTUAL
  if [ -z "$3" ] || [ "$3" != "$4" ]; then
    echo "$1 in $2 differs (< document, > actual):"
    diff <(echo "$3") <(echo "$4") || true
    status=1
  fi
}
shown() {  # DOCUMENT LANGUAGE: its blocks of code
  sed -n "/^\`\`\`$2\$/,/^\`\`\`\$/p" "$1" | grep -v '^```'
}
part() {  # SOURCE: what it marks as shown
  sed -n '/ \(README\|GUIDE\): begin\( \|$\)/,/ \(README\|GUIDE\): end\( \|$\)/p' "$1" |
    sed '1d;$d; s/^  //'
}

compare 'the CUDA example' "$readme" "$(shown "$readme" cuda)" "$(part "$quickstart_cuda")"
compare 'the C examples' "$guide" \
  "$(shown "$guide" c)" "$(part "$quickstart"; part "$low_latency")"
compare 'the settings table' "$guide" \
  "$(sed -n '/^| variable /,/^$/p' "$guide")" "$("$hep_info" --settings --markdown)"
mapfile -t arguments < <(sed -n 's/^<!-- hep_info \(.*\) -->$/\1/p' "$tools" | tr ' ' '\n')
compare 'the table of the model' "$tools" \
  "$(sed -n '/^<!-- hep_info /,/^<!-- end/p' "$tools" | grep '^|')" \
  "$("$hep_info" "${arguments[@]}")"
compare 'the table of signals' "$tools" \
  "$(sed -n '/^| mode | tokens | ranks /,/^$/p' "$tools")" "$("$hep_info" --signals)"
exit "$status"
