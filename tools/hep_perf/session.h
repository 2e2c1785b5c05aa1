// SPDX-License-Identifier: Apache-2.0
// What one rank keeps from the first job of a run to the last.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "gpu.h"
#include "harness/memory.h"
#include "harness/world.h"
#include "nccl.h"
#include "rows.h"

namespace perf {

struct Session {
  // On the rank's thread. Collective if `with_nccl`.
  Session(harness::World& world, int rank, const Values& values, bool with_nccl)
      : stream(world.backend()) {
    for (const auto& [type, table] : values.all()) tables.try_emplace(type, table, stream);
    if (world.backend() == hepBackendCuda) {
      pinned = std::make_unique<PinnedMemory>(kStagingBytes);
    } else {
      plain.resize(kStagingBytes);
    }
    if (with_nccl) nccl = std::make_unique<NcclComm>(world, rank);
  }

  // Host memory for results on their way to a comparison.
  static constexpr int64_t kStagingBytes = int64_t{16} << 20;
  char* staging() { return pinned ? pinned->data() : plain.data(); }

  RowTable& rows(hepDataType_t type) { return tables.at(type); }

  harness::Stream stream;
  std::map<hepDataType_t, RowTable> tables;
  std::unique_ptr<PinnedMemory> pinned;  // on cuda
  std::vector<char> plain;               // on host
  std::unique_ptr<NcclComm> nccl;        // for the baselines
};

}  // namespace perf
