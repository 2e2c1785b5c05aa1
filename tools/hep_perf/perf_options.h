// SPDX-License-Identifier: Apache-2.0
// The options that hep_perf has besides those of all benchmarks.
#pragma once

#include <algorithm>
#include <vector>

#include "bench/options.h"

namespace bench {

enum class Operation { kRouting, kDispatch, kCombine, kLayer, kLayerGraph };

inline const Names<Operation> kOperationNames = {{"routing", Operation::kRouting},
                                                 {"dispatch", Operation::kDispatch},
                                                 {"combine", Operation::kCombine},
                                                 {"layer", Operation::kLayer},
                                                 {"layer-graph", Operation::kLayerGraph}};

struct PerfOptions : Options {
  std::vector<Operation> operations;
  bool ceilings = true;
  bool exact_sms = false;

  bool measures(Operation operation) const {
    return std::find(operations.begin(), operations.end(), operation) != operations.end();
  }
};

}  // namespace bench
