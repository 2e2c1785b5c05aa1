// SPDX-License-Identifier: Apache-2.0
// Waits of whole operations of the cuda backend, on one rank of two. The other rank is a window in
// device memory: the test writes what it has signalled so far, and the rest never comes.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <hybridep.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "config/config.h"
#include "config/lanes.h"
#include "device.h"
#include "protocol/call_summary.h"
#include "protocol/location.h"
#include "protocol/records.h"
#include "protocol/shape.h"
#include "protocol/signals.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

using device_test::Array;
using device_test::expect_done;

constexpr int kRanks = 2;
constexpr int kPeer = 1;
constexpr int kTopK = 2;
constexpr int kHidden = 64;
constexpr int kTimeoutMs = 100;
constexpr int kSms = 16;

hepConfig_t make_config() {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendCuda;
  config.num_experts = 4;
  config.max_tokens = 64;
  config.max_top_k = kTopK;
  config.hidden = kHidden;
  config.heap_bytes = 1 << 16;
  config.sm_budget = config.dispatch_blocks = config.combine_blocks = kSms;
  hepConfig_t resolved;
  EXPECT_TRUE(resolve_config(&config, kRanks, &resolved).ok());
  return resolved;
}

class CudaWaits : public testing::Test {
 protected:
  CudaWaits()
      : lanes_(make_lanes(make_config(), kRanks)),
        window_(window_bytes(lanes_)),
        peer_window_(window_bytes(lanes_)) {
    BackendContext context{0, 0, kSms, kTimeoutMs, {}, &registrations_, {}};
    EXPECT_CUDA(cudaGetDevice(&context.device));
    for (const Lane& lane : lanes_)
      context.lanes.push_back(
          {lane, 0, {window_.data() + lane.offset, peer_window_.data() + lane.offset}});
    expect_ok(create_cuda_backend(context, &backend_));
    const Lane& lane = lanes_.front();
    expect_ok(backend_->create_routing(
        0, {1, lane.routing_layout, lane.network_routing_layout, nullptr}, &routing_));

    dispatch_.layout = combine_.layout = hepLayoutFlat;
    dispatch_.type = combine_.type = combine_.partial_type = hepTypeBfloat16;
    dispatch_.hidden = combine_.hidden = kHidden;
    dispatch_.x = combine_.y = x_.data();
    dispatch_.rows = combine_.out = rows_.data();
    dispatch_.capacity = combine_.capacity = kCapacity;
  }

  static void expect_ok(const Status& status) { EXPECT_TRUE(status.ok()) << status.message(); }

  // Of the first lane.
  const WindowLayout& layout() const { return lanes_[0].window_layout; }

  // What the peer writes to this rank's window.
  template <typename T>
  void write(uint64_t offset, const T& value) {
    EXPECT_CUDA(cudaMemcpy(window_.data() + lanes_[0].offset + offset, &value, sizeof value,
                           cudaMemcpyDefault));
  }

  // Update 1, in which the peer has no tokens and this rank has those that select `experts`.
  void update(const std::vector<int32_t>& experts) {
    write(layout().header_at(1, kPeer), RecordHeader{0, 0, 0, kTopK, 0});
    for (int block = 0; block < kMaxBlocks; ++block)
      write(layout().block_records_at(kPeer, block), uint64_t{1});
    const Array<int32_t> indices(experts);
    batch_ = {static_cast<int>(experts.size()) / kTopK, kTopK};
    expect_ok(routing_->update({indices.data(), batch_, hepIndexInt32}, nullptr));
    expect_done();
    EXPECT_EQ(backend_->failure().result, hepSuccess);
  }

  // The peer calls dispatch 1 as this rank does; of its rows nobody needs any.
  void publish_rows(uint64_t has_weights) {
    RowsSignal signal{};
    signal.ready = 1;
    signal.location = layout().published;
    signal.has_weights = has_weights;
    signal.call = summary_of(dispatch_, 0, 1);
    write(layout().signals_at(kPeer) + offsetof(Signals, rows) + 1 * sizeof signal, signal);
  }

  // The peer calls combine `epoch` as this rank does, and has no outputs to be read.
  void publish_outputs(uint64_t epoch) {
    OutputsSignal signal{};
    signal.ready = epoch;
    signal.location = kNotInWindow;
    signal.call = summary_of(combine_, 0, 0, 1);
    write(layout().signals_at(kPeer) + offsetof(Signals, outputs) + (epoch & 1) * sizeof signal,
          signal);
  }

  void expect_failure(hepOperation_t operation, hepPhase_t phase, uint64_t number,
                      uint64_t expected) {
    expect_done();
    const hepFailure_t failure = backend_->failure();
    EXPECT_EQ(failure.result, hepErrorTimeout);
    EXPECT_EQ(failure.operation, operation);
    EXPECT_EQ(failure.phase, phase);
    EXPECT_EQ(failure.rank, 0);
    EXPECT_EQ(failure.missing_rank, kPeer);
    EXPECT_EQ(failure.number, number);
    EXPECT_EQ(failure.expected, expected);
    EXPECT_EQ(failure.seen, expected - 1);
  }

  static constexpr int kCapacity = 8;
  const std::vector<Lane> lanes_;
  const Array<char> window_, peer_window_;
  const Registrations registrations_;
  const Array<uint16_t> x_{kCapacity * kHidden}, rows_{kCapacity * kHidden};
  const Array<float> numbers_{kCapacity * kTopK};
  Batch batch_{0, kTopK};
  hepDispatchArgs_t dispatch_ = HEP_DISPATCH_ARGS_INITIALIZER;
  hepCombineArgs_t combine_ = HEP_COMBINE_ARGS_INITIALIZER;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<BackendRouting> routing_;  // goes before its backend
};

TEST_F(CudaWaits, DispatchNamesThePeerThatNeverPublishesRows) {
  update({0, 2});
  expect_ok(routing_->dispatch({dispatch_, {}}, batch_, Step::kWhole, nullptr));
  expect_failure(hepOperationDispatch, hepPhaseRows, 1, 1);
}

TEST_F(CudaWaits, DispatchNamesThePeerThatNeverPublishesWeights) {
  update({0, 2});
  dispatch_.weights = numbers_.data();
  publish_rows(1);
  expect_ok(routing_->dispatch({dispatch_, {}}, batch_, Step::kWhole, nullptr));
  expect_failure(hepOperationDispatch, hepPhaseWeights, 1, 1);
}

TEST_F(CudaWaits, DispatchNamesThePeerThatNeverReads) {
  update({0, 2});
  publish_rows(0);
  expect_ok(routing_->dispatch({dispatch_, {}}, batch_, Step::kWhole, nullptr));
  expect_failure(hepOperationDispatch, hepPhaseReaders, 1, 1);
}

TEST_F(CudaWaits, CombineNamesThePeerThatNeverSendsItsSums) {
  update({0, 2});
  publish_outputs(1);
  expect_ok(routing_->combine(combine_, batch_, Step::kWhole, nullptr));
  expect_failure(hepOperationCombine, hepPhasePartials, 1, 1);
}

// Without tokens of its own this rank waits for no sums.
TEST_F(CudaWaits, CombineNamesThePeerThatNeverReadsItsOutputs) {
  update({});
  combine_.y = window_.data() + lanes_[0].offset + layout().heap;
  publish_outputs(1);
  expect_ok(routing_->combine(combine_, batch_, Step::kWhole, nullptr));
  expect_failure(hepOperationCombine, hepPhaseReaders, 1, 1);
}

TEST_F(CudaWaits, CombineNamesThePeerThatNeverFreesItsSlots) {
  update({});
  publish_outputs(1);
  expect_ok(routing_->combine(combine_, batch_, Step::kWhole, nullptr));
  expect_done();
  EXPECT_EQ(backend_->failure().result, hepSuccess);
  publish_outputs(2);
  expect_ok(routing_->combine(combine_, batch_, Step::kWhole, nullptr));
  expect_failure(hepOperationCombine, hepPhaseSlots, 2, 1);
}

TEST_F(CudaWaits, GradientsNameThePeerThatNeverTookTheLast) {
  update({});
  combine_.row_gradients = numbers_.data();
  publish_outputs(1);
  for (int combine = 0; combine < 2; ++combine)
    expect_ok(routing_->combine(combine_, batch_, Step::kWhole, nullptr));
  expect_failure(hepOperationCombine, hepPhaseSlots, 2, 1);
}

}  // namespace
}  // namespace hep
