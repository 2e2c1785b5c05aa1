// SPDX-License-Identifier: Apache-2.0
// A batch whose calls are good until a test spoils them.
#pragma once

#include <functional>

#include "support.h"

// 8 tokens, top-2, on every rank.
struct Batch {
  static constexpr int kTokens = 8;
  static constexpr int kTopK = 2;
  static constexpr int64_t kCapacity = 64;

  Batch(Rank& rank, const hepConfig_t& config, const hepRoutingConfig_t* place = nullptr)
      : self(rank),
        indices(backend, kTokens * kTopK * 8 + 16),
        rows(backend, kCapacity * config.hidden * 2 + 16),
        x(backend, kCapacity * config.hidden * 2 + 16),
        numbers(backend, 4096) {
    for (harness::Buffer* buffer : {&indices, &rows, &x, &numbers}) buffer->fill(0);
    EXPECT_HEP(hepRoutingCreate(routing.out(), rank.comm, place));
    rank.barrier();
    dispatch.layout = combine.layout = hepLayoutFlat;
    dispatch.x = x.data();
    dispatch.rows = rows.data();
    combine.y = rows.data();
    combine.out = x.data();
    dispatch.capacity = combine.capacity = kCapacity;
  }

  hepResult_t update() { return hepRoutingUpdate(routing.get(), &choice, self.stream.get()); }

  void update_in_the_dispatch() { dispatch.update = &choice; }

  hepBackend_t backend = harness::world().backend();
  Rank& self;
  RoutingHandle routing;
  harness::Buffer indices, rows, x, numbers;
  hepUpdate_t choice = harness::make_update(indices.data(), kTokens, kTopK, hepIndexInt32);
  hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
  hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
};

template <typename T>
T* misaligned(const harness::Buffer& buffer, int by) {
  return reinterpret_cast<T*>(buffer.as<char>() + by);
}

// Runs the body with an updated batch, and sees that the communicator works afterwards.
inline void with_batch(const hepConfig_t& config, const std::function<void(Batch&)>& body) {
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config);
    ASSERT_HEP(batch.update());
    body(batch);
    self.barrier();
    expect_working(self, config);
  });
}

inline void with_batch(const std::function<void(Batch&)>& body) {
  with_batch(small_config(), body);
}
