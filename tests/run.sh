#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds everything and runs all tests; ends with their numbers.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/build.sh
rm -f build/*.xml build/meson-logs/testlog.json
status=0
meson test -C build --no-rebuild --print-errorlogs || status=$?
tests/count_results.py build || status=1
exit "$status"
