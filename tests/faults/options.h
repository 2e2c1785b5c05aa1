// SPDX-License-Identifier: Apache-2.0
// What the fault table is asked to do.
#pragma once

#include <hybridep.h>

namespace faults {

struct Options {
  hepBackend_t backend = hepBackendHost;
  int num_ranks = 3;
  int victim = 1;  // the rank that the faults are of
};
Options& options();

}  // namespace faults
