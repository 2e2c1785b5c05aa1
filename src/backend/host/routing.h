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
#include "protocol/network_layout.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"

namespace hep {

class HostBackend;
class Packer;
struct HostLane;
struct RowArithmetic;

// The sections of RoutingLayout and NetworkRoutingLayout by name.
struct HostRoutingState {
  HostRoutingState(void* memory, const RoutingRequest& request, int most_parts);

  int num_tokens() const { return totals->num_tokens; }
  int top_k() const { return totals->top_k; }

  int alignment, max_tokens, max_top_k;
  int32_t* tokens_per_expert;
  int32_t* expert_offsets;
  RoutingTotals* totals;
  uint32_t* source_tokens;
  uint32_t* source_rows;
  uint32_t* chunk_rows;
  uint16_t* own_experts;
  uint8_t* partial_counts;
  Row* rows;
  Selection* selections;
  float* weights;

  uint32_t* part_rows;
  uint32_t* first_parts;
  uint16_t* part_tokens;
  uint8_t* part_counts;
  RemotePart* token_parts;
  uint32_t* source_domain_rows;
  uint32_t* rail_first_parts;
  uint8_t* rail_ranks;

  // Of a token, [part_counts].
  RemotePart* parts_of(int64_t token) const { return token_parts + token * max_parts; }
  // Of the rows of the rail peer in a domain.
  uint8_t* rail_ranks_of(int domain) const { return rail_ranks + int64_t{domain} * max_tokens; }

 private:
  int max_parts;
};

// The halves of the operations. The first ones wait for nothing but peers that are not done with
// the operation of this kind before.
void send_update(const Operation& operation, const TopK& choice, HostBackend& backend,
                 HostRoutingState& state);
Status receive_update(const Operation& operation, HostRoutingState& state);

// `x_in_place`: the peers read the rows where they are, in the heap.
Status publish(const Operation& operation, const RowArithmetic& arithmetic,
               const hepDispatchArgs_t& args, bool x_in_place, const HostRoutingState& state);
// `packer`: sends the rows for other domains meanwhile; NULL: they have been sent, or there are
// none.
Status receive_rows(const Operation& operation, const hepDispatchArgs_t& args, Packer* packer,
                    HostRoutingState& state);
// Waits until the peers of this domain have read this rank's rows.
Status wait_for_readers(const Operation& operation, uint64_t epoch);
// Waits until they have taken what has come to this rank from other domains.
Status wait_for_takers(const Operation& operation);

Status send_partials(const Operation& operation, const RowArithmetic& arithmetic,
                     const hepCombineArgs_t& args, const HostRoutingState& state);
Status add_partials(const Operation& operation, const RowArithmetic& arithmetic,
                    const hepCombineArgs_t& args, const HostRoutingState& state);
// The summary of a call.
uint64_t combine_call(const hepCombineArgs_t& args, const HostRoutingState& state);

class HostRouting final : public BackendRouting {
 public:
  // From calloc, so that pages which no batch reaches are never touched.
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<void, Free>;

  // `own` is NULL if the request has memory.
  HostRouting(HostBackend& backend, HostLane& lane, const RoutingRequest& request, Memory own);
  ~HostRouting() override;

  Status update(const TopK& choice, hepStream_t stream) override;
  Status dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                  hepStream_t stream) override;
  Status combine(const hepCombineArgs_t& args, const Batch& batch, Step step,
                 hepStream_t stream) override;
  Status query(hepRoutingCounts_t* counts, hepStream_t stream) override;
  const void* memory() const override { return memory_; }

 private:
  Status check_halves(Step step) const;
  Status run_update(const TopK& choice, Step step);
  Status move_rows(const Operation& operation, const hepDispatchArgs_t& args, bool x_in_place,
                   Step step);

  HostBackend& backend_;
  HostLane& lane_;
  const Memory own_;
  void* const memory_;
  HostRoutingState state_;
};

}  // namespace hep
