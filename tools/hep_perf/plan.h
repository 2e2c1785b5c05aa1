// SPDX-License-Identifier: Apache-2.0
// How the library's own choice of tuning stands against the values that were tried.
#pragma once

#include <vector>

#include "report.h"

namespace perf {

struct PlanCheck {
  const Row* chosen;  // by the library
  const Row* best;    // of the same case; may be the same row

  double behind_percent() const {
    return (chosen->timing.median_us / best->timing.median_us - 1) * 100;
  }
};

// One for each case of which more than the library's choice was measured.
std::vector<PlanCheck> check_plan(const std::vector<Row>& rows);

}  // namespace perf
