#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds everything and runs the tests, those of the host side once more under the address, undefined
# behaviour and thread sanitizers; ends with their numbers. With --long it runs instead what takes too
# long for every change: 64 and 72 ranks, ten minutes of random operations, and a hundred times as many
# mutations of what the parsers read, under the address sanitizer too.
# usage: tests/run.sh [--long]
set -euo pipefail
cd "$(dirname "$0")/.."

selection=()
if [ $# -gt 0 ]; then
  [ "$*" = --long ] || { echo 'usage: tests/run.sh [--long]' >&2; exit 2; }
  selection=(--setup long --suite long)
fi
export CCACHE_SLOPPINESS=pch_defines,time_macros  # lets it serve precompiled headers
status=0

# Most tests that Meson may run side by side sleep: more of them than cores.
run_tests() {  # FOLDER
  rm -f "$1"/*.xml "$1"/meson-logs/testlog.json
  meson test -C "$1" --no-rebuild --print-errorlogs --num-processes 8 "${selection[@]}" || status=$?
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

# clang checks the locks; the others check the Python package.
tools/build.sh clang mypy python3-numpy python3-torch python3-venv
run_tests build
folders=(build build-asan)
run_sanitized_tests build-asan address,undefined 0
if [ ${#selection[@]} -eq 0 ]; then
  folders+=(build-tsan)
  run_sanitized_tests build-tsan thread 1
fi

tests/count_results.py "${folders[@]}" || status=1
exit "$status"
