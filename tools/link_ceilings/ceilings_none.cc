// SPDX-License-Identifier: Apache-2.0
// Stands in for ceilings.cc in a build without CUDA: there are no links to measure.
#include "ceilings.h"

namespace bench {

Ceilings measure_ceilings(int, const std::vector<int>&) {
  Ceilings ceilings;
  ceilings.skipped = "built without CUDA";
  return ceilings;
}

}  // namespace bench
