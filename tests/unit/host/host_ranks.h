// SPDX-License-Identifier: Apache-2.0
// The ranks of a communicator on the host backend, without a communicator: windows in plain memory,
// a backend and a routing each.
#pragma once

#include <gtest/gtest.h>
#include <hybridep.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/status.h"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"
#include "protocol/signals.h"
#include "protocol/window_layout.h"

namespace hep {

constexpr int kHidden = 8;
constexpr uint64_t kNetworkBytes = 1 << 20;
constexpr int kLongTimeoutMs = 60000;
constexpr int kShortTimeoutMs = 50;
constexpr uint16_t kCanary = 0xabcd;
constexpr int32_t kIntCanary = 0x5a5a5a5a;

using Matrix = std::vector<uint16_t>;  // BF16 rows
using Ints = std::vector<int32_t>;
using Floats = std::vector<float>;

// The BF16 bits of numbers that BF16 represents exactly.
inline uint16_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  EXPECT_EQ(bits & 0xffff, 0u) << value << " is not a BF16 number";
  return static_cast<uint16_t>(bits >> 16);
}

// Rows whose columns all hold the same number.
inline Matrix rows_of(std::initializer_list<float> values) {
  Matrix rows;
  for (float value : values) rows.insert(rows.end(), kHidden, bits_of(value));
  return rows;
}

inline Matrix canary_rows(int count) { return Matrix(count * kHidden, kCanary); }

inline Matrix operator+(Matrix a, const Matrix& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Options {
  int num_ranks = 2;
  int num_experts = 4;
  int max_tokens = 64;
  int max_top_k = 2;
  int64_t heap_bytes = 0;
  int alignment = 1;
  int timeout_ms = kLongTimeoutMs;
  int domain_size = 0;  // 0: all ranks
};

// All ranks of a communicator, in this process, each with one routing.
class Ranks {
 public:
  explicit Ranks(const Options& options) : lane_(lane_of(options)) {
    for (int r = 0; r < options.num_ranks; ++r) {
      const uint64_t bytes = align_up(layout().total, 4096);
      windows_.emplace_back(std::aligned_alloc(4096, bytes), &std::free);
      std::memset(windows_[r].get(), 0, bytes);
    }
    for (int r = 0; r < options.num_ranks; ++r) {
      LaneContext context{lane_, r, {}};
      for (int peer = 0; peer < options.num_ranks; ++peer)
        context.windows.push_back(lane_.topology().share_domain(r, peer) ? window(peer) : nullptr);
      const BackendContext backend{r, -1, 0, options.timeout_ms, {context}, nullptr, [] {}};
      backends_.emplace_back();
      routings_.emplace_back();
      batches_.push_back({0, 0});
      EXPECT_TRUE(create_host_backend(backend, &backends_[r]).ok());
      const RoutingRequest request{options.alignment, lane_.routing_layout,
                                   lane_.network_routing_layout, nullptr};
      EXPECT_TRUE(backends_[r]->create_routing(0, request, &routings_[r]).ok());
    }
  }

  Backend& backend(int rank) { return *backends_[rank]; }
  BackendRouting& routing(int rank) { return *routings_[rank]; }
  void* window(int rank) { return windows_[rank].get(); }
  const WindowLayout& layout() const { return lane_.window_layout; }
  Signals& signals(int rank, int peer) {
    return *at<Signals>(window(rank), layout().signals_at(peer));
  }
  RecordHeader& record_header(int rank, int peer, uint64_t epoch) {
    return *at<RecordHeader>(window(rank), layout().header_at(epoch, peer));
  }

  // A section of a routing's memory.
  template <typename T>
  const T* section(int rank, uint64_t RoutingLayout::*offset) {
    return at<T>(routings_[rank]->memory(), lane_.routing_layout.*offset);
  }
  const hepRowCounters_t& counters(int rank) {
    return section<RoutingTotals>(rank, &RoutingLayout::totals)->row_counters;
  }

  // Runs body(rank) on a thread a rank.
  void run(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (size_t r = 0; r < backends_.size(); ++r) threads.emplace_back(body, static_cast<int>(r));
    for (std::thread& thread : threads) thread.join();
  }

  Status update_one(int rank, const Ints& indices, int top_k) {
    return update_one(rank, indices.data(), {static_cast<int>(indices.size()) / top_k, top_k});
  }
  Status update_one(int rank, const void* indices, const Batch& batch,
                    hepIndexType_t type = hepIndexInt32) {
    batches_[rank] = batch;
    return routings_[rank]->update({indices, batch, type}, nullptr);
  }
  Status dispatch_one(int rank, const hepDispatchArgs_t& args) {
    return routings_[rank]->dispatch({args, {}}, batches_[rank], Step::kWhole, nullptr);
  }
  Status combine_one(int rank, const hepCombineArgs_t& args) {
    return routings_[rank]->combine(args, batches_[rank], Step::kWhole, nullptr);
  }
  void update(const std::vector<Ints>& indices, int top_k) {
    run([&](int rank) { expect_ok(update_one(rank, indices[rank], top_k)); });
  }
  void dispatch(const std::vector<hepDispatchArgs_t>& args) {
    run([&](int rank) { expect_ok(dispatch_one(rank, args[rank])); });
  }
  void combine(const std::vector<hepCombineArgs_t>& args) {
    run([&](int rank) { expect_ok(combine_one(rank, args[rank])); });
  }

  static void expect_ok(const Status& status) { EXPECT_TRUE(status.ok()) << status.message(); }

 private:
  static Lane lane_of(const Options& options) {
    Lane lane{};
    Shape& shape = lane.shape;
    shape.num_ranks = options.num_ranks;
    shape.num_experts = options.num_experts;
    shape.max_tokens = options.max_tokens;
    shape.max_top_k = options.max_top_k;
    shape.row_bytes = shape.partial_row_bytes = kHidden * 2;
    shape.heap_bytes = options.heap_bytes;
    const int domain_size = options.domain_size != 0 ? options.domain_size : options.num_ranks;
    Shape domain = shape;
    domain.num_ranks = domain_size;
    domain.num_experts = domain_size * shape.num_local_experts();
    lane.window_layout = WindowLayout::make(domain);
    lane.routing_layout = RoutingLayout::make(shape);
    lane.network_layout =
        NetworkLayout::make(shape, domain_size, lane.window_layout.heap, kNetworkBytes);
    lane.window_layout.move_heap(lane.network_layout.end);
    lane.network_routing_layout =
        NetworkRoutingLayout::make(shape, lane.network_layout, lane.routing_layout.total);
    return lane;
  }

  const Lane lane_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> windows_;
  std::vector<std::unique_ptr<Backend>> backends_;
  std::vector<std::unique_ptr<BackendRouting>> routings_;
  std::vector<Batch> batches_;  // of the latest updates
};

inline hepDispatchArgs_t dispatch_args(hepLayout_t layout, const Matrix& x, Matrix& rows) {
  hepDispatchArgs_t args{};
  args.layout = layout;
  args.type = hepTypeBfloat16;
  args.hidden = kHidden;
  args.x = x.data();
  args.rows = rows.data();
  args.capacity = static_cast<int64_t>(rows.size()) / kHidden;
  return args;
}

inline hepCombineArgs_t combine_args(hepLayout_t layout, hepWeightMode_t mode, const Matrix& y,
                                     Matrix& out) {
  hepCombineArgs_t args{};
  args.layout = layout;
  args.weight_mode = mode;
  args.type = args.partial_type = hepTypeBfloat16;
  args.hidden = kHidden;
  args.y = y.data();
  args.capacity = static_cast<int64_t>(y.size()) / kHidden;
  args.out = out.data();
  return args;
}

// The example that most tests share: experts 0 and 1 live on rank 0, 2 and 3 on rank 1. It has a
// token without a second selection and one that selects the same expert twice.
const std::vector<Ints> kIndices = {{0, 2, /**/ 3, -1, /**/ 1, 0}, {2, 2, /**/ 1, 3}};
constexpr int kTopK = 2;

}  // namespace hep
