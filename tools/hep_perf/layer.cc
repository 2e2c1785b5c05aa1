// SPDX-License-Identifier: Apache-2.0
// Measures whole layers: a routing update, a dispatch, and a combine of the dispatched rows.
#include <algorithm>
#include <vector>

#include "harness/update.h"
#include "operation_bench.h"
#include "slots.h"

namespace bench {

// Two batches, each with its own indices and tokens, take turns. Batch 0 comes last.
struct OperationBench::Layer {
  Layer(const Job& job, const Handles& handles, hepLayout_t layout, Memory memory, int rank)
      : job(job),
        handles(handles),
        layout(layout),
        memory(memory),
        capacities(batch_capacities(job, layout)),
        capacity(capacities[rank]),
        num_rows(job.routing().at(rank).output_rows(layout, capacity)),
        x(job, handles.comm, memory, batch_slots(job).total_rows() * job.x_bytes()),
        rows(job, handles.comm, memory, num_rows * job.row_bytes()),
        weights(job, rank, layout, num_rows),
        out(poisoned(job.backend, job.shape.tokens * job.row_bytes())),
        indices{uploaded(job.backend, job.workload.indices(0, rank)),
                uploaded(job.backend, job.workload.indices(1, rank))} {
    constexpr unsigned char kPoison = 0x5a;
    harness::fill(job.backend, rows.data(), kPoison, num_rows * job.row_bytes());
    dispatch.layout = layout;
    dispatch.rows = rows.data();
    dispatch.capacity = capacity;
    weights.fill(&dispatch);
    combine.layout = layout;
    combine.weight_mode = job.weight_mode(layout);
    combine.y = rows.data();
    combine.capacity = capacity;
    combine.out = out.data();
  }

  int64_t first_token(int batch) const { return batch_slots(job).first_row(batch); }

  const Job& job;
  const Handles& handles;
  const hepLayout_t layout;
  const Memory memory;
  const std::vector<int64_t> capacities;  // of all ranks
  const int64_t capacity, num_rows;
  const Rows x, rows;
  const Weights weights;
  const harness::Buffer out;
  const harness::Buffer indices[2];
  hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
  hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
};

// If ranks share a GPU, all of them enqueue an operation before any enqueues the next.
void OperationBench::enqueue(Layer& layer, int batch) {
  const hepStream_t stream = session_.stream.get();
  const auto keep_step = [&] {
    if (world_.shares_devices()) meet();
  };
  require(harness::update_routing(layer.handles.routing, layer.indices[batch].data(),
                                  job_.shape.tokens, job_.shape.top_k, hepIndexInt32, stream),
          "hepRoutingUpdate");
  keep_step();
  layer.dispatch.x = layer.x.data() + layer.first_token(batch) * job_.x_bytes();
  require(hepDispatch(layer.handles.routing, &layer.dispatch, stream), "hepDispatch");
  keep_step();
  require(hepCombine(layer.handles.routing, &layer.combine, stream), "hepCombine");
}

void OperationBench::run_layers(const Handles& handles, hepLayout_t layout, Memory memory) {
  Layer layer(job_, handles, layout, memory, rank_);
  fill_tokens(layer.x.data(), batch_slots(job_).total_rows());
  for (const Operation operation : {Operation::kLayer, Operation::kLayerGraph}) {
    if (options_.measures(operation)) run_layer(handles, layer, operation);
  }
}

void OperationBench::run_layer(const Handles& handles, Layer& layer, Operation operation) {
  const bool captured = operation == Operation::kLayerGraph;
  harness::Graph graphs[2];
  if (captured) {
    meet();  // making a graph may wait for the device, so no rank may wait for this one there
    for (int batch = 0; batch < 2; ++batch) {
      graphs[batch].begin(session_.stream);
      enqueue(layer, batch);
      graphs[batch].end(session_.stream);
    }
    meet();
  }
  const int last = last_call();
  const auto call = [&](int index) {
    const int batch = (last - index) % 2;
    if (captured) {
      graphs[batch].launch(session_.stream);
    } else {
      enqueue(layer, batch);
    }
  };
  const hepLimits_t& limits = handles.limits;
  Case description =
      describe(handles, operation,
               std::max({limits.routing_blocks, limits.layout_dispatch_blocks[layer.layout],
                         limits.layout_combine_blocks[layer.layout]}),
               layer.layout, layer.memory, weights_name(layer.layout));
  description.moves_rows = false;  // not once, but twice
  run_case(handles, description, call, [&] {
    return checker_.routing(handles.routing, session_.stream.get()) +
           checker_.dispatch(
               layer.layout, layer.capacity, layer.first_token(0),
               {layer.rows.data(), layer.dispatch.row_weights, layer.dispatch.row_experts}) +
           checker_.layer({layer.layout, layer.capacities}, layer.first_token(0), layer.out.data());
  });
}

}  // namespace bench
