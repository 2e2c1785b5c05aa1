// SPDX-License-Identifier: Apache-2.0
// Every pointer of dispatch and combine is looked at: the cuda backend refuses host memory, and
// both backends refuse misaligned memory, by name and before anything is enqueued.
#include <functional>
#include <string>
#include <vector>

#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

// A pointer of a call, and how a call that is otherwise good gives it.
template <typename Args>
struct Pointer {
  const char* name;
  int alignment;
  std::function<void(Batch&, Args&, void*)> give;
};

using DispatchPointer = Pointer<hepDispatchArgs_t>;
using CombinePointer = Pointer<hepCombineArgs_t>;

// Sets one field.
template <typename Args, typename T>
std::function<void(Batch&, Args&, void*)> field(T* Args::*pointer) {
  return [pointer](Batch&, Args& args, void* memory) { args.*pointer = static_cast<T*>(memory); };
}

std::vector<DispatchPointer> dispatch_pointers() {
  using Args = hepDispatchArgs_t;
  return {
      {"x", 16, field(&Args::x)},
      {"rows", 16, field(&Args::rows)},
      {"weights", 4, field(&Args::weights)},
      {"dense_weights", 4, field(&Args::dense_weights)},
      {"row_weights", 4, field(&Args::row_weights)},
      {"row_experts", 4, field(&Args::row_experts)},
      {"row_sources", 4, field(&Args::row_sources)},
      {"row_tokens", 4, field(&Args::row_tokens)},
      {"gather", 4,
       [](Batch&, Args& args, void* memory) {
         args.gather = static_cast<int32_t*>(memory);
         args.gather_capacity = 16;
       }},
      {"expert_rows", 4,
       [](Batch&, Args& args, void* memory) {
         args.layout = hepLayoutExpertPadded;
         args.capacity = 16;
         args.expert_rows = static_cast<int32_t*>(memory);
       }},
      {"group_sizes", 8,
       [](Batch&, Args& args, void* memory) {
         args.layout = hepLayoutExpertMajor;
         args.group_sizes = static_cast<int64_t*>(memory);
       }},
      {"row_counters", 8, field(&Args::row_counters)},
      {"scales", 1, field(&Args::scales)},
      {"row_scales", 4,
       [](Batch& batch, Args& args, void* memory) {
         args.scales = batch.numbers.data();
         args.row_scales = memory;
         args.row_scales_stride = Batch::kCapacity;
         args.scale_element_bytes = 4;
       }},
      {"indices of hepUpdate_t", 4,
       [](Batch& batch, Args& args, void* memory) {
         batch.choice.indices = memory;
         args.update = &batch.choice;
       }},
  };
}

std::vector<CombinePointer> combine_pointers() {
  using Args = hepCombineArgs_t;
  return {
      {"y", 16, field(&Args::y)},
      {"out", 16, field(&Args::out)},
      {"row_weights", 4,
       [](Batch&, Args& args, void* memory) {
         args.weight_mode = hepWeightsRow;
         args.row_weights = static_cast<float*>(memory);
       }},
      {"row_gradients", 4,
       [](Batch& batch, Args& args, void* memory) {
         args.row_gradients = static_cast<float*>(memory);
         args.gradients = batch.numbers.as<float>();
       }},
      {"gradients", 4,
       [](Batch& batch, Args& args, void* memory) {
         args.row_gradients = batch.numbers.as<float>();
         args.gradients = static_cast<float*>(memory);
       }},
      {"dense_gradients", 4,
       [](Batch& batch, Args& args, void* memory) {
         args.row_gradients = batch.numbers.as<float>();
         args.dense_gradients = static_cast<float*>(memory);
       }},
  };
}

hepConfig_t scales_config() {
  hepConfig_t config = small_config();
  config.scale_bytes = 12;
  return config;
}

// Where a pointer with an alignment points instead; NULL: it cannot be bad in this way.
using BadMemory = std::function<void*(Batch& batch, int alignment)>;

void expect_pointers_refused(Batch& batch, const BadMemory& bad, const std::string& rule) {
  const hepStream_t stream = batch.self.stream.get();
  const hepRouting_t routing = batch.routing.get();
  const auto mentions = [&](const char* name) {
    return Mentions{name + std::string(" is "), rule};
  };
  for (const DispatchPointer& pointer : dispatch_pointers()) {
    void* const memory = bad(batch, pointer.alignment);
    if (memory == nullptr) continue;
    hepDispatchArgs_t args = batch.dispatch;
    pointer.give(batch, args, memory);
    expect_refused(pointer.name, hepDispatch(routing, &args, stream), hepErrorInvalidArgument,
                   mentions(pointer.name));
  }
  for (const CombinePointer& pointer : combine_pointers()) {
    void* const memory = bad(batch, pointer.alignment);
    if (memory == nullptr) continue;
    hepCombineArgs_t args = batch.combine;
    pointer.give(batch, args, memory);
    expect_refused(pointer.name, hepCombine(routing, &args, stream), hepErrorInvalidArgument,
                   mentions(pointer.name));
  }
}

TEST(BadPointer, HostMemoryIsRefusedOnTheCudaBackend) {
  if (world().backend() != hepBackendCuda)
    GTEST_SKIP() << "the host backend takes any memory of the process";
  with_batch(scales_config(), [](Batch& batch) {
    alignas(256) static char plain[1 << 16];
    harness::Graph graph;
    graph.begin(batch.self.stream);
    expect_pointers_refused(
        batch, [](Batch&, int) -> void* { return plain; }, "not device memory");
    graph.end(batch.self.stream);
    EXPECT_EQ(graph.num_nodes(), 0u);
  });
}

TEST(BadPointer, MisalignedMemoryIsRefused) {
  with_batch(scales_config(), [](Batch& batch) {
    const BadMemory misaligned_by_half = [](Batch& own, int alignment) -> void* {
      return alignment == 1 ? nullptr : own.numbers.as<char>() + alignment / 2;
    };
    expect_pointers_refused(batch, misaligned_by_half, "aligned");
  });
}

}  // namespace
