// SPDX-License-Identifier: Apache-2.0
// Measures routing update, dispatch and combine, each alone.
#include <vector>

#include "harness/update.h"
#include "operation_bench.h"
#include "slots.h"

namespace bench {

// The operations that follow need a routing, so it is updated even if its time is not wanted.
void OperationBench::run_routing(const Handles& handles) {
  const harness::Buffer indices[] = {uploaded(job_.backend, job_.workload.indices(0, rank_)),
                                     uploaded(job_.backend, job_.workload.indices(1, rank_))};
  // The sets alternate so that every update has something to do; the last one is set 0.
  const auto call = [&](int index) {
    require(harness::update_routing(handles.routing, indices[(last_call() - index) % 2].data(),
                                    job_.shape.tokens, job_.shape.top_k, hepIndexInt32,
                                    session_.stream.get()),
            "hepRoutingUpdate");
  };
  if (options_.measures(Operation::kRouting) && job_.shape.is_first_format) {
    Case description = describe(handles, Operation::kRouting, handles.limits.routing_blocks);
    description.moves_rows = false;
    run_case(handles, description, call,
             [&] { return checker_.routing(handles.routing, session_.stream.get()); });
  } else {
    meet();  // every rank has prepared
    call(last_call());
    session_.stream.synchronize();
  }
}

void OperationBench::run_dispatch(const Handles& handles, hepLayout_t layout, Memory memory) {
  const int64_t capacity = job_.routing().at(rank_).num_rows(layout);
  const int64_t num_rows = job_.routing().at(rank_).output_rows(layout, capacity);
  const Slots token = token_slots(job_);
  const Slots output = output_slots(job_, num_rows, token);
  const Rows x(job_, handles.comm, memory, token.total_rows() * job_.x_bytes());
  fill_tokens(x.data(), token.total_rows());
  const harness::Buffer rows = poisoned(job_.backend, output.total_rows() * job_.row_bytes());
  const Weights weights(job_, rank_, layout, num_rows);
  const Scaling scales(job_, rank_, token.total_rows(), output.total_rows(), session_);

  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  args.layout = layout;
  args.capacity = capacity;
  args.quantize = job_.format().quantize;
  weights.fill(&args);
  const auto choose_slots = [&](int index) {
    args.x = x.data() + token.first_row(index) * job_.x_bytes();
    const int64_t first_row = output.first_row(index);
    args.rows = num_rows == 0 ? nullptr : rows.as<char>() + first_row * job_.row_bytes();
    scales.fill(token.first_row(index), first_row, &args);
  };
  const auto call = [&](int index) {
    choose_slots(index);
    require(hepDispatch(handles.routing, &args, session_.stream.get()), "hepDispatch");
  };
  Case description =
      describe(handles, Operation::kDispatch, handles.limits.layout_dispatch_blocks[layout], layout,
               memory, options_.weights ? "carried" : "none");
  description.bytes_per_row += job_.scale_bytes();
  run_case(handles, description, call, [&] {
    choose_slots(last_call());
    return checker_.dispatch(layout, capacity, token.first_row(last_call()),
                             {args.rows, args.row_weights, args.row_experts, args.row_scales});
  });
}

// If no dispatch is measured, one must still carry the weights that combine multiplies by.
void OperationBench::carry_weights(const Handles& handles, hepLayout_t layout) {
  const int64_t capacity = job_.routing().at(rank_).num_rows(layout);
  const int64_t num_rows = job_.routing().at(rank_).output_rows(layout, capacity);
  const Rows x(job_, handles.comm, Memory::kAny, job_.shape.tokens * job_.x_bytes());
  const Rows rows(job_, handles.comm, Memory::kAny, num_rows * job_.row_bytes());
  const Weights weights(job_, rank_, layout, num_rows);
  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  args.layout = layout;
  args.x = x.data();
  args.rows = rows.data();
  args.capacity = capacity;
  weights.fill(&args);
  meet();  // every rank has prepared
  require(hepDispatch(handles.routing, &args, session_.stream.get()), "hepDispatch");
  session_.stream.synchronize();
}

void OperationBench::run_combine(const Handles& handles, hepLayout_t layout, Memory memory) {
  const Slots expert = expert_slots(job_, layout, rank_);
  const Slots output = output_slots(job_, job_.shape.tokens, expert);
  const Rows y(job_, handles.comm, memory, expert.total_rows() * job_.row_bytes());
  session_.rows(job_.format().type)
      .fill(y.data(), row_starts(Matrix::kExpertOutputs, rank_, expert.total_rows()),
            job_.shape.hidden);
  const harness::Buffer out = poisoned(job_.backend, output.total_rows() * job_.row_bytes());

  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  args.layout = layout;
  args.weight_mode = job_.weight_mode(layout);
  args.capacity = job_.routing().at(rank_).num_rows(layout);
  const auto out_of_call = [&](int index) {
    return out.as<char>() + output.first_row(index) * job_.row_bytes();
  };
  const auto call = [&](int index) {
    args.y = expert.rows == 0 ? nullptr : y.data() + expert.first_row(index) * job_.row_bytes();
    args.out = out_of_call(index);
    require(hepCombine(handles.routing, &args, session_.stream.get()), "hepCombine");
  };
  const Case description =
      describe(handles, Operation::kCombine, handles.limits.layout_combine_blocks[layout], layout,
               memory, weights_name(layout));
  run_case(handles, description, call, [&] {
    std::vector<int64_t> first_rows;
    for (int rank = 0; rank < job_.num_ranks; ++rank) {
      first_rows.push_back(expert_slots(job_, layout, rank).first_row(last_call()));
    }
    return checker_.combine({layout, exact_capacities(job_, layout)}, first_rows,
                            out_of_call(last_call()));
  });
}

}  // namespace bench
