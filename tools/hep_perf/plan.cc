// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

namespace perf {

std::vector<PlanCheck> check_plan(const std::vector<Row>& rows) {
  std::vector<PlanCheck> checks;
  for (const Row& chosen : rows) {
    if (!chosen.tuning.is_default()) continue;
    PlanCheck check{&chosen, &chosen};
    bool varied = false;
    for (const Row& row : rows) {
      if (!row.same_case(chosen)) continue;
      varied = varied || &row != &chosen;
      if (row.timing.median_us < check.best->timing.median_us) check.best = &row;
    }
    if (varied) checks.push_back(check);
  }
  return checks;
}

}  // namespace perf
