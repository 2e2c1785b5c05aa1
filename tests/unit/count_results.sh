#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The counts at the end of a run of all tests: none is lost, and what failed is named with its words.
set -euo pipefail
count_results=$1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
  printf 'count_results: %s\n' "$1" >&2
  exit 1
}

# The build directory BUILD, where the tests NAME=RESULT ran.
make_build() {  # BUILD NAME=RESULT...
  local build=$folder/$1 test
  shift
  mkdir -p "$build/meson-logs"
  for test in "$@"; do
    printf '{"name": "project:suite / %s", "result": "%s", "stdout": "last words of %s"}\n' \
      "${test%=*}" "${test#*=}" "${test%=*}"
  done >"$build/meson-logs/testlog.json"
}

make_report() {  # BUILD NAME CASE...
  local report=$folder/$1/$2.xml
  shift 2
  printf '<testsuites><testsuite>%s</testsuite></testsuites>\n' "$*" >"$report"
}

passed='<testcase classname="Suite" name="Passes" status="run" result="completed"/>'
failed='<testcase classname="Suite" name="Fails" status="run"><failure message="3 is not 4"/></testcase>'
skipped='<testcase classname="Suite" name="Skips" status="run" result="skipped"/>'
disabled='<testcase classname="Suite" name="Rests" status="notrun"/>'

expect() {  # STATUS LAST_LINE BUILD...
  local expected=$1 last=$2 status=0
  shift 2
  output=$("$count_results" "${@/#/$folder/}") || status=$?
  [ "$status" = "$expected" ] || fail "ended with $status instead of $expected for $*: $output"
  [ "${output##*$'\n'}" = "$last" ] || fail "no last line '$last' for $*: $output"
}

expect_said() {  # TEXT
  [[ $output == *"$1"* ]] || fail "no '$1' in: $output"
}

make_build good cases=OK script=OK absent=SKIP
make_report good cases "$passed" "$passed" "$skipped" "$disabled"
expect 0 '3 passed, 0 failed, 2 skipped' good

make_build bad cases=FAIL script=FAIL
make_report bad cases "$passed" "$failed"
expect 1 '4 passed, 2 failed, 2 skipped' good bad
expect_said 'bad: project:suite / cases ended with FAIL'
expect_said 'Suite.Fails'
expect_said '3 is not 4'
expect_said 'last words of script'

make_build crashed cases=TIMEOUT
make_report crashed cases "$passed"
expect 1 '1 passed, 1 failed, 0 skipped' crashed
expect_said 'last words of cases'

make_build empty absent=SKIP
expect 1 '0 passed, 0 failed, 1 skipped' empty
