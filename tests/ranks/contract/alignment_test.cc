// SPDX-License-Identifier: Apache-2.0
// Pointers need no more than the alignment that the header asks for, columns of scales may lie
// apart, and scales need not be taken.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kTokens = 37;

// Room for quantisation by both formulas, in elements of every size.
hepConfig_t scales_config() {
  hepConfig_t config = small_config();
  config.type = hepTypeFloat8E4M3;
  config.hidden = 272;
  config.scale_bytes = 12;
  config.low_latency_tokens = kTokens;
  return config;
}

int add_batch(JobBuilder& builder, int routing, hepLayout_t layout, hepIndexType_t index_type) {
  const int update = builder.add_update(routing, 4, index_type,
                                        std::vector<int64_t>(world().num_ranks(), kTokens));
  return builder.add_dispatch(update, layout, true);
}

// Each layout with rows that carry scales, by rows and by columns, and rows that are quantised.
void add_dispatches(JobBuilder& builder, hepMode_t mode) {
  const int routing = builder.add_routing(16, mode);
  int number = 0;
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    for (const int element : {0, 1, 2, 4}) {
      for (const bool quantizes : {false, true}) {
        const int index =
            add_batch(builder, routing, layout, number % 2 == 0 ? hepIndexInt32 : hepIndexInt64);
        Dispatch& dispatch = builder.dispatch(index);
        dispatch.scale_element_bytes = element;
        if (quantizes) dispatch.quantize = element == 1 ? hepQuantizeUe8m0 : hepQuantizeFloat32;
        dispatch.has_scales = !quantizes;
        dispatch.stride_slack = number % 3;
        dispatch.no_row_scales = number % 5 == 4;
        if (number % 4 == 3) builder.fold_update(index);
        ++number;
      }
    }
  }
}

void add_combines(JobBuilder& builder, hepMode_t mode) {
  const int routing = builder.add_routing(8, mode);
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    const int dispatch = add_batch(builder, routing, layout, hepIndexInt32);
    for (const hepWeightMode_t weights : {hepWeightsNone, hepWeightsDispatched, hepWeightsRow}) {
      const int update = builder.dispatch(dispatch).update;
      Combine& combine = builder.combine(builder.add_combine(update, layout, weights, dispatch));
      combine.has_gradients = weights != hepWeightsRow;
    }
  }
}

TEST(Alignment, OfDispatchNeedBeNoMoreThanTheHeaderAsksFor) {
  const hepConfig_t config = scales_config();
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    Random random(options().seed + 90 + mode);
    JobBuilder builder(world().num_ranks(), config, random);
    add_dispatches(builder, mode);
    builder.align_least();
    run_job(config, builder.finish("least alignments, mode " + std::to_string(mode)));
  }
}

TEST(Alignment, OfCombineNeedBeNoMoreThanTheHeaderAsksFor) {
  hepConfig_t config = small_config();
  config.low_latency_tokens = kTokens;
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    Random random(options().seed + 92 + mode);
    JobBuilder builder(world().num_ranks(), config, random);
    add_combines(builder, mode);
    builder.align_least();
    run_job(config, builder.finish("least alignments, mode " + std::to_string(mode)));
  }
}

}  // namespace
