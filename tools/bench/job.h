// SPDX-License-Identifier: Apache-2.0
// A job is one shape: the inputs of all ranks, and the reference of what must arrive where. All
// ranks of a process share it, read-only.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "inputs.h"
#include "options.h"
#include "oracle/reference.h"

namespace bench {

// Returns a config for the work of a job.
hepConfig_t work_config(const Options& options, const Shape& shape);

struct Job {
  // `values` is kept by reference.
  Job(const Options& options, const Shape& shape, const Values& values, hepBackend_t backend,
      int num_ranks);

  const Format& format() const { return shape.format; }
  int64_t x_bytes() const { return shape.format.x_bytes(shape.hidden); }  // of a row
  int64_t row_bytes() const { return shape.format.row_bytes(shape.hidden); }
  int64_t scale_bytes() const { return shape.format.scale_bytes(shape.hidden); }
  int tokens(int rank) const { return shape.tokens_of(rank, num_ranks); }

  // The flat rows that a rank receives, as a mean over the ranks: all of them, and those of other
  // ranks.
  double mean_rows() const;
  double mean_remote_rows() const;

  hepWeightMode_t weight_mode(hepLayout_t layout) const;

  // [hidden] of a row of a rank's matrix.
  const void* row(hepDataType_t type, Matrix matrix, int rank, int64_t row) const {
    return values.of(type).at(row_start(matrix, rank, row));
  }

  const reference::Routing& routing() const { return routings[0]; }

  Options options;
  Shape shape;
  const Values& values;
  hepBackend_t backend;
  int num_ranks;
  Workload workload;
  std::vector<std::vector<float>> weights;   // [rank][T][K]
  reference::Weights weight_pointers;        // the same, for the reference
  std::vector<reference::Routing> routings;  // of both sets of indices
};

// Return by rank the capacity for all rows of a layout, of the first set of indices or of either.
std::vector<int64_t> exact_capacities(const Job& job, hepLayout_t layout);
std::vector<int64_t> batch_capacities(const Job& job, hepLayout_t layout);

}  // namespace bench
