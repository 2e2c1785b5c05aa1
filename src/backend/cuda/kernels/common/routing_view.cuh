// SPDX-License-Identifier: Apache-2.0
// The private memory of a routing, by type: see RoutingLayout.
#pragma once

#include "backend/cuda/kernel_args.h"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"

namespace hep {

struct RoutingView {
  void* memory;
  const RoutingLayout& layout;

  __device__ int32_t* tokens_per_expert() const {
    return section<int32_t>(layout.tokens_per_expert);
  }
  __device__ int32_t* expert_offsets() const { return section<int32_t>(layout.expert_offsets); }
  __device__ RoutingTotals* totals() const { return section<RoutingTotals>(layout.totals); }
  __device__ uint32_t* source_tokens() const { return section<uint32_t>(layout.source_tokens); }
  __device__ uint32_t* source_rows() const { return section<uint32_t>(layout.source_rows); }
  __device__ uint32_t* chunk_rows() const { return section<uint32_t>(layout.chunk_rows); }
  __device__ uint16_t* own_experts() const { return section<uint16_t>(layout.own_experts); }
  __device__ uint8_t* partial_counts() const { return section<uint8_t>(layout.partial_counts); }
  __device__ SentRow* sent_rows() const { return section<SentRow>(layout.sent_rows); }
  __device__ Row* rows() const { return section<Row>(layout.rows); }
  __device__ Selection* selections() const { return section<Selection>(layout.selections); }
  __device__ float* weights() const { return section<float>(layout.weights); }

  // The same in whole words, each of which is moved by one instruction.
  __device__ uint4* row_words() const { return section<uint4>(layout.rows); }
  __device__ uint2* selection_words() const { return section<uint2>(layout.selections); }

 private:
  template <typename T>
  __device__ T* section(uint64_t offset) const {
    return at<T>(memory, offset);
  }
};

// That of the routing on which an operation works.
template <typename Args>
__device__ RoutingView routing_of(const Args& args) {
  return {args.routing, args.context.routing_layout};
}

}  // namespace hep
