// SPDX-License-Identifier: Apache-2.0
// A routing of the host backend: its private memory and the three operations on it.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "backend/backend.h"
#include "backend/host/operation.h"
#include "base/status.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"

namespace hep {

class HostBackend;
struct HostLane;
struct RowArithmetic;

// The sections of RoutingLayout by name.
struct RoutingState {
  RoutingState(void* memory, const RoutingLayout& layout, int alignment);

  int num_tokens() const { return totals->num_tokens; }
  int top_k() const { return totals->top_k; }

  int alignment;
  int32_t* tokens_per_expert;
  int32_t* expert_offsets;
  RoutingTotals* totals;
  uint32_t* source_tokens;
  uint32_t* source_rows;
  uint32_t* chunk_rows;
  uint8_t* partial_counts;
  Row* rows;
  Selection* selections;
  float* weights;
};

// The halves of the operations. The first ones wait for nothing but peers that are not done with the
// operation of this kind before.
void send_update(const Operation& operation, const TopK& choice, HostBackend& backend,
                 RoutingState& state);
Status receive_update(const Operation& operation, RoutingState& state);

// `x_in_place`: the peers read the rows where they are, in the heap.
Status publish(const Operation& operation, const RowArithmetic& arithmetic,
               const hepDispatchArgs_t& args, bool x_in_place, const RoutingState& state);
Status receive_rows(const Operation& operation, const hepDispatchArgs_t& args, RoutingState& state);
// Waits until the peers have read this rank's rows.
Status wait_for_readers(const Operation& operation, uint64_t epoch);

Status send_partials(const Operation& operation, const RowArithmetic& arithmetic,
                     const hepCombineArgs_t& args, const RoutingState& state);
Status add_partials(const Operation& operation, const RowArithmetic& arithmetic,
                    const hepCombineArgs_t& args, const RoutingState& state);

class HostRouting final : public BackendRouting {
 public:
  // From calloc, so that pages which no batch reaches are never touched.
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<void, Free>;

  HostRouting(HostBackend& backend, HostLane& lane, Memory memory, int alignment);

  Status update(const TopK& choice, hepStream_t stream) override;
  Status dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                  hepStream_t stream) override;
  Status combine(const hepCombineArgs_t& args, const Batch& batch, Step step,
                 hepStream_t stream) override;
  Status query(hepRoutingCounts_t* counts, hepStream_t stream) override;
  const void* memory() const override { return memory_.get(); }

 private:
  Status run_update(const TopK& choice, Step step);

  HostBackend& backend_;
  HostLane& lane_;
  Memory memory_;
  RoutingState state_;
};

}  // namespace hep
