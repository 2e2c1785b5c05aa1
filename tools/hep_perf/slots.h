// SPDX-License-Identifier: Apache-2.0
// The places at which consecutive calls find their inputs and outputs.
#pragma once

#include <cstdint>

#include "bench/job.h"
#include "perf_options.h"

namespace bench {

// Consecutive calls use consecutive slots of a buffer. So on a GPU they do not find the last call's
// rows in the L2 cache, and rows that a call failed to write do not pass for its own. A slot larger
// than the cache overlaps the next one: which row lies where still differs.
struct Slots {
  int64_t rows;    // of one slot
  int64_t stride;  // rows from one slot to the next
  int count;

  int64_t total_rows() const { return rows == 0 ? 0 : (count - 1) * stride + rows; }
  int64_t first_row(int call) const { return call % count * stride; }
};

Slots token_slots(const Job& job);                                 // x
Slots expert_slots(const Job& job, hepLayout_t layout, int rank);  // y
Slots output_slots(const Job& job, int64_t rows, const Slots& inputs);
Slots batch_slots(const Job& job);  // x of two batches, one for each set of indices

// Returns the bytes of a heap that has room for the largest case.
int64_t heap_bytes(const Job& job, const PerfOptions& options);

}  // namespace bench
