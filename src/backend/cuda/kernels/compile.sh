#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles a .cu file, and keeps what the test of the machine code reads: the PTX of all architectures and
# ptxas' report. Prints only what is not in the report: warnings and errors.
# usage: compile.sh PTX REPORT NVCC ARGUMENT...
set -eu
ptx=$1
report=$2
shift 2

intermediate=$(mktemp -d)
trap 'rm -rf "$intermediate"' EXIT
status=0
"$@" -Xptxas -v --keep --keep-dir "$intermediate" >"$report" 2>&1 || status=$?
grep -v '^ptxas info  \|^ *[0-9]* bytes stack frame' "$report" >&2 || true
[ "$status" -ne 0 ] || cat "$intermediate"/*.ptx >"$ptx"
exit "$status"
