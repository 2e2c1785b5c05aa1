// SPDX-License-Identifier: Apache-2.0
#include "latency_lane.h"

#include "harness/update.h"

namespace bench {
namespace {

// Returns the address this many bytes on; NULL if there is no memory.
void* offset(char* memory, int64_t bytes) { return memory == nullptr ? nullptr : memory + bytes; }

int64_t expert_bytes(const Job& job, int64_t num_rows) {
  return job.format().can_combine() ? 2 * num_rows * job.row_bytes() : 0;
}

}  // namespace

LatencyLane::LatencyLane(const Job& job, hepComm_t comm, int lane, hepLayout_t layout,
                         Memory memory, int rank, Session& session)
    : job_(job),
      rank_(rank),
      placement_{layout, batch_capacities(job, layout)},
      num_rows_(job.routing().at(rank).output_rows(layout, placement_.capacity[rank])),
      x_(job, comm, memory, 2 * job.tokens(rank) * job.x_bytes()),
      y_(job, comm, memory, expert_bytes(job, num_rows_)),
      weights_(job, rank, layout, num_rows_),
      scales_(job, rank, 2 * job.tokens(rank), num_rows_, session),
      rows_(poisoned(job.backend, num_rows_ * job.row_bytes())),
      out_(poisoned(job.backend, job.tokens(rank) * job.row_bytes())),
      indices_{uploaded(job.backend, job.workload.indices(0, rank)),
               uploaded(job.backend, job.workload.indices(1, rank))},
      update_(harness::make_update(indices_[0].data(), job.tokens(rank), job.shape.top_k,
                                   hepIndexInt32)) {
  const Format& format = job.format();
  const int hidden = job.shape.hidden;
  session.rows(format.x_type())
      .fill(x_.data(), row_starts(Matrix::kTokens, rank, 2 * job.tokens(rank)), hidden);
  if (y_.data() != nullptr) {
    session.rows(format.type)
        .fill(y_.data(), row_starts(Matrix::kExpertOutputs, rank, 2 * num_rows_), hidden);
  }
  dispatch_.layout = combine_.layout = layout;
  dispatch_.capacity = combine_.capacity = num_rows_ == 0 ? 0 : placement_.capacity[rank];
  dispatch_.quantize = format.quantize;
  dispatch_.rows = rows_.data();
  weights_.fill(&dispatch_);
  dispatch_.update = &update_;
  combine_.weight_mode = job.weight_mode(layout);
  combine_.out = out_.data();

  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  config.alignment = job.options.alignment;
  config.mode = hepModeLowLatency;
  config.lane = lane;
  require(hepRoutingCreate(&routing_, comm, &config), "hepRoutingCreate");
}

void LatencyLane::select(int batch) {
  const int64_t first_token = int64_t{batch} * job_.tokens(rank_);
  dispatch_.x = offset(x_.data(), first_token * job_.x_bytes());
  update_.indices = indices_[batch].data();
  scales_.fill(first_token, 0, &dispatch_);
  combine_.y = offset(y_.data(), batch * num_rows_ * job_.row_bytes());
}

void LatencyLane::dispatch(int batch, hepStream_t stream) {
  select(batch);
  require(hepDispatch(routing_, &dispatch_, stream), "hepDispatch");
}

void LatencyLane::combine(int batch, hepStream_t stream) {
  select(batch);
  require(hepCombine(routing_, &combine_, stream), "hepCombine");
}

void LatencyLane::dispatch_send(int batch, hepStream_t stream) {
  select(batch);
  require(hepDispatchSend(routing_, &dispatch_, stream), "hepDispatchSend");
}

void LatencyLane::dispatch_receive(hepStream_t stream) {
  require(hepDispatchReceive(routing_, stream), "hepDispatchReceive");
}

void LatencyLane::combine_send(int batch, hepStream_t stream) {
  select(batch);
  require(hepCombineSend(routing_, &combine_, stream), "hepCombineSend");
}

void LatencyLane::combine_receive(hepStream_t stream) {
  require(hepCombineReceive(routing_, stream), "hepCombineReceive");
}

int64_t LatencyLane::check_dispatch(Checker& checker, hepStream_t stream) const {
  return checker.routing(routing_, stream) +
         checker.dispatch(
             placement_.layout, placement_.capacity[rank_], 0,
             {rows_.data(), dispatch_.row_weights, dispatch_.row_experts, dispatch_.row_scales});
}

int64_t LatencyLane::check_combine(Checker& checker) const {
  return checker.combine(placement_, std::vector<int64_t>(job_.num_ranks, 0), out_.data());
}

}  // namespace bench
