// SPDX-License-Identifier: Apache-2.0
#include "config/ranks.h"

#include "protocol/shape.h"

namespace hep {

Status check_num_ranks(int num_ranks) {
  if (num_ranks >= 1 && num_ranks <= kMaxRanks) return Status();
  return error(hepErrorInvalidArgument, "num_ranks is %d, but must be 1 to %d", num_ranks,
               kMaxRanks);
}

Status check_rank(int rank, int num_ranks) {
  HEP_TRY(check_num_ranks(num_ranks));
  if (rank >= 0 && rank < num_ranks) return Status();
  return error(hepErrorInvalidArgument, "rank is %d, but must be 0 to %d", rank, num_ranks - 1);
}

}  // namespace hep
