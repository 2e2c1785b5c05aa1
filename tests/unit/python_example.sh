#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The Python example of GUIDE.md runs as it stands and prints the version.
# usage: python_example.sh GUIDE LIBRARY VERSION
set -euo pipefail
directory=$(cd "$(dirname "$2")" && pwd)
example=$(sed -n '/^```python$/,/^```$/p' "$1" | sed '1d;$d')
printed=$(LD_LIBRARY_PATH="$directory" python3 -c "$example")
IFS=. read -r major minor patch <<<"$3"
expected=$((major * 10000 + minor * 100 + patch))
if [ "$printed" != "$expected" ]; then
  echo "printed '$printed', but the version is $expected"
  exit 1
fi
