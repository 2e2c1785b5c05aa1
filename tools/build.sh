#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds everything in build/, after installing what Debian or Ubuntu lacks for that. CUDA is used
# if it is there; it is not installed.
# usage: tools/build.sh [PACKAGE...]   (to be installed, too)
set -euo pipefail
cd "$(dirname "$0")/.."

# Whether what a package brings has come another way.
is_there() {  # PACKAGE
  case $1 in
    ninja-build) command -v ninja ;;
    libcli11-dev) pkg-config --exists CLI11 ;;
    nlohmann-json3-dev) pkg-config --exists nlohmann_json ;;
    libfabric-dev) pkg-config --exists 'libfabric >= 1.17' ;;
    *) command -v "$1" ;;
  esac >/dev/null 2>&1
}

missing=()
for package in meson ninja-build g++ pkg-config ccache libgtest-dev openmpi-bin libopenmpi-dev \
  libcli11-dev nlohmann-json3-dev libfabric-dev "$@"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ] &&
    ! is_there "$package"; then
    missing+=("$package")
  fi
done

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "these packages are missing, and neither root nor sudo is there: ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"
fi

export CCACHE_SLOPPINESS=pch_defines,time_macros  # lets it serve precompiled headers
if [ ! -f build/build.ninja ]; then
  meson setup build
fi
ninja -C build
