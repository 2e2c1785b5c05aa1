#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds everything and runs all tests, those of the host side once more under the address, undefined
# behaviour and thread sanitizers; ends with their numbers.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0

run_tests() {  # FOLDER
  rm -f "$1"/*.xml "$1"/meson-logs/testlog.json
  meson test -C "$1" --no-rebuild --print-errorlogs || status=$?
}

# Little optimised, because compiling is most of the time. MPI has leaks and races of its own.
run_sanitized_tests() {  # FOLDER SANITIZERS OPTIMIZATION
  if [ ! -f "$1/build.ninja" ]; then
    meson setup "$1" -Db_sanitize="$2" -Doptimization="$3" -Ddebug=true \
      -Dcuda=disabled -Dmpi=disabled -Dtools=false
  fi
  ninja -C "$1"
  run_tests "$1"
}

tools/build.sh
run_tests build
run_sanitized_tests build-asan address,undefined 0
run_sanitized_tests build-tsan thread 1

tests/count_results.py build build-asan build-tsan || status=1
exit "$status"
