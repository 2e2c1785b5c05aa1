// SPDX-License-Identifier: Apache-2.0
// A call may have rows of another length than the communicator's, as long as they find room.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kTokens = 24;

// Room for rows of 128 bytes, for partial sums of 256, and for scales of four blocks.
hepConfig_t hidden_config() {
  hepConfig_t config = small_config();
  config.scale_bytes = 16;
  config.partial_type = hepTypeFloat32;
  config.low_latency_tokens = kTokens;
  config.heap_bytes = 1 << 20;
  return config;
}

struct DispatchCase {
  int hidden;
  hepDataType_t type;
  hepQuantization_t quantize;
};
constexpr DispatchCase kDispatches[] = {
    {8, hepTypeBfloat16, hepQuantizeNone},        {0, hepTypeBfloat16, hepQuantizeNone},
    {32, hepTypeFloat32, hepQuantizeNone},        {128, hepTypeFloat8E4M3, hepQuantizeNone},
    {128, hepTypeFloat8E4M3, hepQuantizeFloat32}, {48, hepTypeFloat8E4M3, hepQuantizeUe8m0},
    {56, hepTypeFloat16, hepQuantizeNone},
};

struct CombineCase {
  int hidden;
  hepDataType_t type, partial_type;
};
constexpr CombineCase kCombines[] = {
    {8, hepTypeBfloat16, hepTypeBfloat16},  {128, hepTypeBfloat16, hepTypeBfloat16},
    {64, hepTypeFloat32, hepTypeFloat32},   {40, hepTypeFloat16, hepTypeFloat32},
    {128, hepTypeFloat32, hepTypeBfloat16},
};

// All of one routing, so that calls of different lengths follow each other.
void add_calls(JobBuilder& builder, int update, hepLayout_t layout, Memory memory, bool split) {
  for (const DispatchCase& entry : kDispatches) {
    Dispatch& dispatch = builder.dispatch(builder.add_dispatch(update, layout, false));
    dispatch.hidden = entry.hidden;
    dispatch.type = entry.type;
    dispatch.quantize = entry.quantize;
    dispatch.has_scales = entry.type == hepTypeFloat8E4M3 && entry.quantize == hepQuantizeNone;
    dispatch.x_memory.assign(world().num_ranks(), memory);
    dispatch.halves.split = split;
  }
  for (const CombineCase& entry : kCombines) {
    Combine& combine = builder.combine(builder.add_combine(update, layout, hepWeightsNone));
    combine.hidden = entry.hidden;
    combine.type = entry.type;
    combine.partial_type = entry.partial_type;
    combine.y_memory.assign(world().num_ranks(), memory);
    combine.halves.split = split;
  }
}

Job job_of(const hepConfig_t& config, hepMode_t mode, hepLayout_t layout, Memory memory) {
  Random random(options().seed + 60 + layout);
  JobBuilder builder(world().num_ranks(), config, random);
  const bool low_latency = mode == hepModeLowLatency;
  const int update = builder.add_update(builder.add_routing(4, mode), 3, hepIndexInt32,
                                        std::vector<int64_t>(world().num_ranks(), kTokens));
  if (low_latency) {
    const int first = builder.add_dispatch(update, layout, true);
    builder.dispatch(first).hidden = 16;
    builder.fold_update(first);
  }
  add_calls(builder, update, layout, memory, low_latency && memory == kAnyMemory);
  return builder.finish("hidden sizes, mode " + std::to_string(mode) + ", layout " +
                        std::to_string(layout));
}

TEST(Hidden, OfACallMayBeAnyThatFits) {
  const hepConfig_t config = hidden_config();
  std::vector<Job> jobs;
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded})
      for (const Memory memory : {kAnyMemory, kHeapMemory})
        jobs.push_back(job_of(config, mode, layout, memory));
  run_ranks(config, [&](Rank& self) {
    for (const Job& job : jobs) JobRun(job, self).complete();
  });
}

}  // namespace
