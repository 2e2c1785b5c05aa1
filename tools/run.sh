#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds everything and measures dispatch and combine; arguments go to hep_perf.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/build.sh
build/tools/hep_perf "$@"
