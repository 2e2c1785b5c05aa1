// SPDX-License-Identifier: Apache-2.0
// Bad arguments of dispatch and combine are refused before anything happens, with a sentence that
// names the rule, and leave the communicator usable.
#include <functional>
#include <string>
#include <vector>

#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

// One spoilt argument of a call.
template <typename Args>
struct Spoilt {
  const char* what;
  std::function<void(Batch&, Args&)> spoil;
  hepResult_t expected;
  Mentions mentions;
};

using SpoiltDispatch = Spoilt<hepDispatchArgs_t>;
using SpoiltCombine = Spoilt<hepCombineArgs_t>;

void expect_dispatch_refused(const std::vector<SpoiltDispatch>& table,
                             const hepConfig_t& config = small_config()) {
  with_batch(config, [&](Batch& batch) {
    for (const SpoiltDispatch& entry : table) {
      hepDispatchArgs_t args = batch.dispatch;
      entry.spoil(batch, args);
      expect_refused(entry.what, hepDispatch(batch.routing.get(), &args, batch.self.stream.get()),
                     entry.expected, entry.mentions);
    }
  });
}

void expect_combine_refused(const std::vector<SpoiltCombine>& table) {
  with_batch([&](Batch& batch) {
    for (const SpoiltCombine& entry : table) {
      hepCombineArgs_t args = batch.combine;
      entry.spoil(batch, args);
      expect_refused(entry.what, hepCombine(batch.routing.get(), &args, batch.self.stream.get()),
                     entry.expected, entry.mentions);
    }
  });
}

constexpr hepResult_t kInvalid = hepErrorInvalidArgument;

TEST(BadInput, DispatchRefusesTypesWithoutRoom) {
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused({
      {"FP32 in a communicator of BF16",
       [](Batch&, Args& a) { a.type = hepTypeFloat32; },
       kInvalid,
       {"type", "hepTypeFloat32", "256", "128"}},
  });
}

TEST(BadInput, DispatchRefusesScalesThatTheConfigDoesNotKnow) {
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused({
      {"scales",
       [](Batch& b, Args& a) { a.scales = b.numbers.data(); },
       kInvalid,
       {"scales", "scale_bytes"}},
      {"row scales",
       [](Batch& b, Args& a) { a.row_scales = b.numbers.data(); },
       kInvalid,
       {"row_scales", "scale_bytes"}},
      {"an element without a stride",
       [](Batch&, Args& a) { a.scale_element_bytes = 4; },
       kInvalid,
       {"scale_element_bytes", "row_scales_stride"}},
      {"quantisation of a type that is not E4M3",
       [](Batch&, Args& a) { a.quantize = hepQuantizeFloat32; },
       kInvalid,
       {"quantize", "hepTypeFloat8E4M3"}},
      {"quantisation without room for its scales",
       [](Batch&, Args& a) {
         a.quantize = hepQuantizeUe8m0;
         a.type = hepTypeFloat8E4M3;
       },
       kInvalid,
       {"quantize", "scale_bytes"}},
  });
}

TEST(BadInput, DispatchRefusesScalesThatDoNotFitTheirForm) {
  hepConfig_t config = small_config();
  config.scale_bytes = 12;
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused(
      {
          {"row scales without scales",
           [](Batch& b, Args& a) { a.row_scales = b.rows.data(); },
           kInvalid,
           {"row_scales", "scales"}},
          {"quantisation of scales",
           [](Batch& b, Args& a) {
             a.quantize = hepQuantizeFloat32;
             a.type = hepTypeFloat8E4M3;
             a.scales = b.numbers.data();
           },
           kInvalid,
           {"scales", "quantize"}},
          {"no element",
           [](Batch&, Args& a) { a.row_scales_stride = 64; },
           kInvalid,
           {"scale_element_bytes", "0"}},
          {"element that does not divide the scales",
           [](Batch&, Args& a) {
             a.row_scales_stride = 64;
             a.scale_element_bytes = 8;
           },
           kInvalid,
           {"scale_element_bytes", "8"}},
          {"stride below capacity",
           [](Batch&, Args& a) {
             a.row_scales_stride = 60;
             a.scale_element_bytes = 4;
           },
           kInvalid,
           {"row_scales_stride", "60", "64"}},
          {"stride of 68 bytes",
           [](Batch&, Args& a) {
             a.row_scales_stride = 68;
             a.scale_element_bytes = 1;
           },
           kInvalid,
           {"row_scales_stride", "68", "16"}},
          {"misaligned",
           [](Batch& b, Args& a) {
             a.scales = b.numbers.data();
             a.row_scales = misaligned<void>(b.rows, 2);
             a.row_scales_stride = 64;
             a.scale_element_bytes = 4;
           },
           kInvalid,
           {"row_scales", "4"}},
      },
      config);
}

TEST(BadInput, DispatchRefusesValuesOutsideTheirEnumerations) {
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused({
      {"layout", [](Batch&, Args& a) { a.layout = 77; }, kInvalid, {"layout", "77"}},
      {"overflow", [](Batch&, Args& a) { a.overflow = -3; }, kInvalid, {"overflow", "-3"}},
      {"type", [](Batch&, Args& a) { a.type = 99; }, kInvalid, {"type", "99"}},
      {"quantize", [](Batch&, Args& a) { a.quantize = 5; }, kInvalid, {"quantize", "5"}},
  });
}

TEST(BadInput, DispatchRefusesBadMatrices) {
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused({
      {"no x", [](Batch&, Args& a) { a.x = nullptr; }, kInvalid, {"x", "8"}},
      {"x misaligned",
       [](Batch& b, Args& a) { a.x = misaligned<char>(b.x, 8); },
       kInvalid,
       {"x", "16"}},
      {"rows misaligned",
       [](Batch& b, Args& a) { a.rows = misaligned<char>(b.rows, 2); },
       kInvalid,
       {"rows", "16"}},
      {"no rows, but a capacity",
       [](Batch&, Args& a) { a.rows = nullptr; },
       kInvalid,
       {"rows", "64"}},
      {"capacity", [](Batch&, Args& a) { a.capacity = -5; }, kInvalid, {"capacity", "-5"}},
  });
}

TEST(BadInput, DispatchRefusesExtrasOfAnotherLayout) {
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused({
      {"expert_rows",
       [](Batch& b, Args& a) { a.expert_rows = b.numbers.as<int32_t>(); },
       kInvalid,
       {"expert_rows"}},
      {"group_sizes",
       [](Batch& b, Args& a) { a.group_sizes = b.numbers.as<int64_t>(); },
       kInvalid,
       {"group_sizes", "hepLayoutExpertMajor"}},
      {"row_experts",
       [](Batch& b, Args& a) {
         a.layout = hepLayoutExpertMajor;
         a.row_experts = b.numbers.as<int32_t>();
       },
       kInvalid,
       {"row_experts"}},
      {"gather",
       [](Batch& b, Args& a) {
         a.layout = hepLayoutExpertMajor;
         a.gather = b.numbers.as<int32_t>();
         a.gather_capacity = 16;
       },
       kInvalid,
       {"gather"}},
  });
}

TEST(BadInput, DispatchRefusesAGatherListWithoutCapacity) {
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused({
      {"none",
       [](Batch& b, Args& a) { a.gather = b.numbers.as<int32_t>(); },
       kInvalid,
       {"gather_capacity"}},
      {"negative",
       [](Batch& b, Args& a) {
         a.gather = b.numbers.as<int32_t>();
         a.gather_capacity = -2;
       },
       kInvalid,
       {"gather_capacity", "-2"}},
  });
}

TEST(BadInput, DispatchRefusesRowsThatDoNotFit) {
  using Args = hepDispatchArgs_t;
  expect_dispatch_refused({
      {"negative", [](Batch&, Args& a) { a.hidden = -8; }, kInvalid, {"hidden", "-8", "64"}},
      {"too large", [](Batch&, Args& a) { a.hidden = 65537; }, kInvalid, {"hidden", "65536"}},
      {"cut to 32 bits",
       [](Batch&, Args& a) { a.hidden = (int64_t{1} << 32) + 64; },
       kInvalid,
       {"hidden", "4294967360"}},
      {"no multiple of 16 bytes",
       [](Batch&, Args& a) { a.hidden = 12; },
       kInvalid,
       {"24 bytes", "hidden is 12", "multiple of 16"}},
      {"longer than the communicator's rows",
       [](Batch&, Args& a) { a.hidden = 72; },
       kInvalid,
       {"hidden 72", "144 bytes", "128"}},
      {"longer in another type",
       [](Batch&, Args& a) {
         a.hidden = 48;
         a.type = hepTypeFloat32;
       },
       kInvalid,
       {"hidden 48", "192 bytes", "128"}},
  });
}

TEST(BadInput, CombineRefusesPartialSumsThatDoNotFit) {
  using Args = hepCombineArgs_t;
  expect_combine_refused({
      {"negative", [](Batch&, Args& a) { a.hidden = -1; }, kInvalid, {"hidden", "-1"}},
      {"no multiple of 16 bytes",
       [](Batch&, Args& a) { a.hidden = 4; },
       kInvalid,
       {"8 bytes", "hidden is 4", "multiple of 16"}},
      {"longer than the communicator's",
       [](Batch&, Args& a) { a.hidden = 72; },
       kInvalid,
       {"hidden is 72", "144 bytes", "128"}},
  });
}

TEST(BadInput, CombineRefusesTypesThatItCannotAdd) {
  using Args = hepCombineArgs_t;
  expect_combine_refused({
      {"FP8",
       [](Batch&, Args& a) { a.type = hepTypeFloat8E5M2; },
       kInvalid,
       {"type", "hepTypeFloat8E5M2"}},
      {"bytes", [](Batch&, Args& a) { a.type = hepTypeBytes; }, kInvalid, {"type"}},
      {"FP16 partial sums",
       [](Batch&, Args& a) { a.partial_type = hepTypeFloat16; },
       kInvalid,
       {"partial_type", "hepTypeFloat16"}},
      {"FP32 partial sums without room",
       [](Batch&, Args& a) { a.partial_type = hepTypeFloat32; },
       kInvalid,
       {"partial_type", "config"}},
  });
}

TEST(BadInput, CombineWantsGradientsAndTheirRowsTogether) {
  using Args = hepCombineArgs_t;
  expect_combine_refused({
      {"gradients alone",
       [](Batch& b, Args& a) { a.gradients = b.numbers.as<float>(); },
       kInvalid,
       {"gradients", "row_gradients"}},
      {"row gradients alone",
       [](Batch& b, Args& a) { a.row_gradients = b.numbers.as<float>(); },
       kInvalid,
       {"row_gradients", "gradients"}},
      {"gradients misaligned",
       [](Batch& b, Args& a) {
         a.row_gradients = b.numbers.as<float>();
         a.gradients = misaligned<float>(b.numbers, 2);
       },
       kInvalid,
       {"gradients", "4"}},
  });
}

TEST(BadInput, WeightsAndGradientsHaveOneForm) {
  expect_dispatch_refused({
      {"weights twice",
       [](Batch& b, hepDispatchArgs_t& a) { a.weights = a.dense_weights = b.numbers.as<float>(); },
       kInvalid,
       {"weights", "dense_weights", "both"}},
  });
  expect_combine_refused({
      {"gradients twice",
       [](Batch& b, hepCombineArgs_t& a) {
         a.row_gradients = a.gradients = a.dense_gradients = b.numbers.as<float>();
       },
       kInvalid,
       {"gradients", "dense_gradients", "both"}},
      {"dense gradients alone",
       [](Batch& b, hepCombineArgs_t& a) { a.dense_gradients = b.numbers.as<float>(); },
       kInvalid,
       {"gradients", "row_gradients"}},
  });
}

TEST(BadInput, CombineRefusesValuesOutsideTheirEnumerations) {
  using Args = hepCombineArgs_t;
  expect_combine_refused({
      {"layout", [](Batch&, Args& a) { a.layout = -1; }, kInvalid, {"layout", "-1"}},
      {"type", [](Batch&, Args& a) { a.type = 42; }, kInvalid, {"type", "42"}},
      {"weight mode", [](Batch&, Args& a) { a.weight_mode = 9; }, kInvalid, {"weight_mode", "9"}},
  });
}

TEST(BadInput, CombineRefusesBadMatrices) {
  using Args = hepCombineArgs_t;
  expect_combine_refused({
      {"no y", [](Batch&, Args& a) { a.y = nullptr; }, kInvalid, {"y", "64"}},
      {"capacity", [](Batch&, Args& a) { a.capacity = -1; }, kInvalid, {"capacity", "-1"}},
      {"y misaligned",
       [](Batch& b, Args& a) { a.y = misaligned<char>(b.rows, 4); },
       kInvalid,
       {"y", "16"}},
      {"no out", [](Batch&, Args& a) { a.out = nullptr; }, kInvalid, {"out", "8"}},
      {"out misaligned",
       [](Batch& b, Args& a) { a.out = misaligned<char>(b.x, 8); },
       kInvalid,
       {"out", "16"}},
  });
}

TEST(BadInput, CombineRefusesRowWeightsThatDoNotFitTheMode) {
  using Args = hepCombineArgs_t;
  expect_combine_refused({
      {"given in mode none",
       [](Batch& b, Args& a) { a.row_weights = b.numbers.as<float>(); },
       kInvalid,
       {"row_weights"}},
      {"missing in mode row",
       [](Batch&, Args& a) { a.weight_mode = hepWeightsRow; },
       kInvalid,
       {"row_weights"}},
  });
  with_batch([](Batch& batch) {
    batch.dispatch.weights = batch.numbers.as<float>();
    ASSERT_HEP(hepDispatch(batch.routing.get(), &batch.dispatch, batch.self.stream.get()));
    batch.combine.weight_mode = hepWeightsDispatched;
    batch.combine.row_weights = batch.numbers.as<float>();
    expect_refused("given in mode dispatched",
                   hepCombine(batch.routing.get(), &batch.combine, batch.self.stream.get()),
                   kInvalid, {"row_weights"});
  });
}

TEST(BadInput, CombineWantsADispatchWithWeightsAfterTheLatestUpdate) {
  with_batch([](Batch& batch) {
    const hepStream_t stream = batch.self.stream.get();
    const hepRouting_t routing = batch.routing.get();
    batch.combine.weight_mode = hepWeightsDispatched;
    const Mentions mentions = {"hepWeightsDispatched"};
    expect_refused("no dispatch", hepCombine(routing, &batch.combine, stream), hepErrorInvalidUsage,
                   mentions);
    ASSERT_HEP(hepDispatch(routing, &batch.dispatch, stream));
    expect_refused("no weights", hepCombine(routing, &batch.combine, stream), hepErrorInvalidUsage,
                   mentions);
    batch.dispatch.weights = batch.numbers.as<float>();
    ASSERT_HEP(hepDispatch(routing, &batch.dispatch, stream));
    EXPECT_HEP(hepCombine(routing, &batch.combine, stream));
    ASSERT_HEP(batch.update());
    expect_refused("weights of an earlier update", hepCombine(routing, &batch.combine, stream),
                   hepErrorInvalidUsage, mentions);
  });
}

}  // namespace
