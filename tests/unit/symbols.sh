#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The library exports exactly what the list says, needs no library that a user may not have, and stays
# when it is closed.
# It is hardened as far as the build is.
# usage: symbols.sh LIBRARY LIST fortified|plain
set -eu
library=$1
list=$2

# Type A are the versions themselves.
symbols=$(nm -D --defined-only "$library" | awk '$2 != "A" { print $3 }' | LC_ALL=C sort)
exported=$(echo "$symbols" | sed 's/@.*//')
if [ "$exported" != "$(cat "$list")" ]; then
  echo "exported symbols differ from $list (< list, > library):"
  printf '%s\n' "$exported" | diff "$list" - || true
  exit 1
fi
if echo "$symbols" | grep -v '@@HEP_0\.1$'; then
  echo "has another version than HEP_0.1, or none"
  exit 1
fi

needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
echo "$needed"
if echo "$needed" | grep -E '^lib(cuda|cudart|nccl|mpi|gtest|python)'; then
  echo "is needed, but must not be"
  exit 1
fi

# A rendezvous that nobody has joined yet is served by a thread, in the code of the library.
if ! readelf -d "$library" | grep -q NODELETE; then
  echo "dlclose() unloads the library under its threads"
  exit 1
fi

imported=$(nm -D --undefined-only "$library")
for call in __stack_chk_fail $([ "$3" = plain ] || echo __vsnprintf_chk); do
  if ! printf '%s\n' "$imported" | grep -q " $call"; then
    echo "$call is not called"
    exit 1
  fi
done
if ! readelf -d "$library" | grep -q BIND_NOW; then
  echo "functions are bound late, through a table that stays writable"
  exit 1
fi
