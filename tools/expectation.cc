// SPDX-License-Identifier: Apache-2.0
#include "expectation.h"

#include <cstdio>
#include <vector>

#include "backend/cuda/plan.h"
#include "config/lanes.h"
#include "protocol/data_type.h"

namespace hep {
namespace {

constexpr int kElementsOfScale = 128;

constexpr const char* kLayoutNames[] = {"flat", "expert-major", "expert-padded"};

struct Row {
  const char *operation, *memory, *format;
  int32_t layout;
  double alg_bytes;
};

template <typename Work>
void print_row(const Row& row, const Plan& plan, const Work& work, int sms, int chosen) {
  std::printf("| %s | %s | %s | %s |", row.operation, kLayoutNames[row.layout], row.memory,
              row.format);
  for (const int blocks : {sms, chosen}) {
    const double us = expected_us(plan, work, blocks);
    std::printf(" %d | %.0f | %.0f |", blocks, us, row.alg_bytes / us / 1e3);
  }
  std::printf("\n");
}

void print_dispatch(const Plan& plan, int hidden, int32_t layout, int32_t type, int sms) {
  const bool is_fp8 = element_bytes(type) == 1;
  const Shape& shape = plan.shape;
  const int scale_bytes =
      is_fp8 ? ceil_div(hidden, kElementsOfScale) * static_cast<int>(sizeof(float)) : 0;
  const DispatchWork work{
      layout, shape.max_tokens, shape.max_top_k, 1, hidden * element_bytes(type), scale_bytes,
      false};
  const double rows = shape.max_tokens * ranks_of_token(shape.num_ranks, shape.max_top_k);
  print_row({"dispatch", "heap", is_fp8 ? "fp8-e4m3 + fp32" : "bf16", layout,
             rows * (work.row_bytes + scale_bytes)},
            plan, work, sms, dispatch_blocks(plan, work));
}

void print_combine(const Plan& plan, int hidden, int32_t layout, Sending sending, int sms) {
  const Shape& shape = plan.shape;
  const int row_bytes = hidden * element_bytes(hepTypeBfloat16);
  const CombineWork work{layout, shape.max_tokens, shape.max_top_k, row_bytes, row_bytes, sending};
  const double rows = shape.max_tokens * ranks_of_token(shape.num_ranks, shape.max_top_k);
  print_row(
      {"combine", sending == Sending::kNone ? "heap" : "any", "bf16", layout, rows * row_bytes},
      plan, work, sms, combine_blocks(plan, work));
}

}  // namespace

void print_expectation(const hepConfig_t& config, int num_ranks, const Profile& profile, int sms) {
  const Plan plan = make_plan(make_lanes(config, num_ranks).front(), {&profile, kMaxBlocks});
  std::printf(
      "| operation | layout | memory | format | SMs | us | alg GB/s | SMs chosen | us | alg GB/s "
      "|\n"
      "|---|---|---|---|---|---|---|---|---|---|\n");
  for (const int32_t type : {hepTypeBfloat16, hepTypeFloat8E4M3})
    for (const int32_t layout : {hepLayoutFlat, hepLayoutExpertMajor})
      print_dispatch(plan, config.hidden, layout, type, sms);
  print_combine(plan, config.hidden, hepLayoutFlat, Sending::kNone, sms);
  print_combine(plan, config.hidden, hepLayoutFlat, Sending::kRows, sms);
  print_combine(plan, config.hidden, hepLayoutExpertMajor, Sending::kSums, sms);
}

}  // namespace hep
