// SPDX-License-Identifier: Apache-2.0
// What the tests with ranks share: options, random numbers, communicators that end with their test.
#pragma once

#include <gtest/gtest.h>
#include <hybridep.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <string>
#include <vector>

#include "harness/memory.h"
#include "harness/update.h"
#include "harness/world.h"

struct Options {
  uint64_t seed = 1;
  int cases = 300;
  int cycles = 20;
  int replays = 50;  // of low-latency graphs
  int soak_seconds = 0;
  int only_case = -1;  // -1: all
  bool large = false;
};
Options& options();

constexpr int kTimeoutMs = 20000;

// For operations that are to expire.
int short_timeout_ms();

#define EXPECT_HEP(call) EXPECT_EQ(call, hepSuccess) << hepGetLastError()
#define ASSERT_HEP(call) ASSERT_EQ(call, hepSuccess) << hepGetLastError()

// The same numbers on every rank and machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int64_t between(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(int percent) { return between(1, 100) <= percent; }
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + between(0, static_cast<int64_t>(values.size()) - 1));
  }

 private:
  uint64_t state_;
};

// A small shape that fits any number of ranks: 4 experts a rank, 64 tokens, hidden 64, top-4.
hepConfig_t small_config();

// Routings that are destroyed with their owner.
class RoutingHandle {
 public:
  RoutingHandle() = default;
  ~RoutingHandle() { hepRoutingDestroy(routing_); }
  RoutingHandle(const RoutingHandle&) = delete;
  RoutingHandle& operator=(const RoutingHandle&) = delete;
  hepRouting_t get() const { return routing_; }
  hepRouting_t* out() { return &routing_; }

 private:
  hepRouting_t routing_ = nullptr;
};

// One rank of a test.
struct Rank {
  int rank;
  hepComm_t comm;
  harness::Stream& stream;

  void barrier() const { harness::world().barrier(rank); }
};

// Runs body on every rank with a communicator of its own, which is destroyed afterwards.
void run_ranks(const hepConfig_t& config, const std::function<void(Rank&)>& body);

using Mentions = std::vector<std::string>;

void expect_mentions(const std::string& sentence, const Mentions& mentions);

// The call failed as it should, and the last error says why.
void expect_refused(const std::string& what, hepResult_t actual, hepResult_t expected,
                    const Mentions& mentions);

// The result that hepCommGetAsyncError tells; the last error is then its sentence.
hepResult_t async_error(const Rank& rank);

// One whole round of update, dispatch and combine gives the expected bytes. Collective.
void expect_working(Rank& rank, const hepConfig_t& config);
