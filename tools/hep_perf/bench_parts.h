// SPDX-License-Identifier: Apache-2.0
// What the cases of a Bench are made of.
#pragma once

#include "bench.h"
#include "buffers.h"
#include "require.h"

namespace perf {

inline const char* weights_name(hepWeightMode_t mode) {
  return mode == hepWeightsNone ? "none" : "dispatched";
}

struct Bench::Handles {
  Handles() = default;
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  ~Handles() {
    hepRoutingDestroy(routing);
    hepCommDestroy(comm);
  }
  hepComm_t comm = nullptr;
  hepRouting_t routing = nullptr;
  int sm_budget = 0;
  Tuning tuning;
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
};

}  // namespace perf
