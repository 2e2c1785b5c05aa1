#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The package is clean under mypy --strict, for the oldest Python that it serves.
# usage: types.sh PYTHON PACKAGE
set -euo pipefail
if ! "$1" -c 'import mypy' 2>/dev/null; then
  echo "mypy is not installed for $1"
  exit 77
fi
cd "$2"
oldest=(--python-version 3.9)
case $("$1" -m mypy --version) in
  'mypy 0.'* | 'mypy 1.'*) ;;
  *) oldest=() ;; # later ones do not know it
esac
"$1" -m mypy --cache-dir=/dev/null "${oldest[@]}" hybridep
