// SPDX-License-Identifier: Apache-2.0
// Memory of the caller's that is registered: what is refused, that all ranks agree, and that what
// lies there is moved as from any other memory, but without a copy.
#include <chrono>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "harness/device.h"
#include "ranks/job.h"
#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

bool on_cuda() { return world().backend() == hepBackendCuda; }
int last_rank() { return world().num_ranks() - 1; }

// Memory of cuMemCreate.
class VirtualMemory {
 public:
  VirtualMemory(size_t bytes, bool shareable)
      : data_(harness::device::allocate_virtual(bytes, shareable)) {}
  ~VirtualMemory() { harness::device::release_virtual(data_); }
  VirtualMemory(const VirtualMemory&) = delete;
  VirtualMemory& operator=(const VirtualMemory&) = delete;
  void* data() const { return data_; }

 private:
  void* const data_;
};

// A job whose inputs lie in registered memory on some ranks, or on all.
Job job_with_registered_inputs(const hepConfig_t& config, bool on_all_ranks) {
  Random random(options().seed + 60);
  const int num_ranks = world().num_ranks();
  JobBuilder builder(num_ranks, config.num_experts, config.hidden, random);
  std::vector<Memory> memory(num_ranks, kRegisteredMemory);
  for (int rank = 0; rank < num_ranks && !on_all_ranks; rank += 2) memory[rank] = kAnyMemory;
  const int update = builder.add_update(builder.add_routing(8), config.max_top_k, hepIndexInt64,
                                        std::vector<int64_t>(num_ranks, config.max_tokens));
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor}) {
    const int dispatch = builder.add_dispatch(update, layout, true);
    builder.dispatch(dispatch).x_memory = memory;
    builder.combine(builder.add_combine(update, layout, hepWeightsNone)).y_memory = memory;
    builder.combine(builder.add_combine(update, layout, hepWeightsDispatched, dispatch)).y_memory =
        memory;
  }
  return builder.finish("registered inputs");
}

TEST(Register, InputsInRegisteredMemoryGiveTheOraclesBytes) {
  const hepConfig_t config = small_config();
  for (const bool on_all_ranks : {true, false}) {
    const Job job = job_with_registered_inputs(config, on_all_ranks);
    run_ranks(config, [&](Rank& self) {
      for (int round = 0; round < 3; ++round) JobRun(job, self).complete();
    });
  }
}

// What rank 0, which hosts expert 0, the choice of all tokens, receives first.
void expect_first_byte(Batch& batch, void* x, unsigned char byte) {
  const hepBackend_t backend = world().backend();
  harness::fill(backend, x, byte, Batch::kTokens * 64 * 2);
  batch.rows.fill(0);
  hepDispatchArgs_t dispatch = batch.dispatch;
  dispatch.x = x;
  ASSERT_HEP(hepDispatch(batch.routing.get(), &dispatch, batch.self.stream.get()));
  batch.self.stream.synchronize();
  if (batch.self.rank != 0) return;
  unsigned char first = 0;
  batch.rows.download(&first, 1);
  EXPECT_EQ(first, byte);
}

TEST(Register, TakesWholeAllocationsAndPartsOfThem) {
  with_batch([](Batch& batch) {
    const hepComm_t comm = batch.self.comm;
    harness::Buffer memory(batch.backend, 1 << 20);
    for (const size_t offset : {0, 4096, 500 * 1000 / 16 * 16}) {
      char* const part = memory.as<char>() + offset;
      const size_t bytes = memory.bytes() - offset;
      ASSERT_HEP(hepCommRegister(comm, part, bytes));
      expect_first_byte(batch, part, 0x3c);
      expect_first_byte(batch, part + 1024, 0x3d);
      ASSERT_HEP(hepCommDeregister(comm, part));
      expect_first_byte(batch, part, 0x3e);
    }
  });
}

TEST(Register, TakesVirtualMemory) {
  if (!on_cuda()) GTEST_SKIP() << "the host backend has one kind of memory";
  with_batch([](Batch& batch) {
    const hepComm_t comm = batch.self.comm;
    constexpr size_t kBytes = 3 << 20;
    VirtualMemory memory(kBytes, true);
    char* const part = static_cast<char*>(memory.data()) + 8192;
    batch.self.barrier();
    ASSERT_HEP(hepCommRegister(comm, part, kBytes - 8192));
    expect_first_byte(batch, part, 0x3c);
    expect_first_byte(batch, part + 4096, 0x3d);
    ASSERT_HEP(hepCommDeregister(comm, part));
    // Some ranks with memory of another kind, some with none.
    harness::Buffer plain(batch.backend, 1 << 20);
    const int kind = batch.self.rank % 3;
    void* const pointer = kind == 0 ? memory.data() : kind == 1 ? plain.data() : nullptr;
    ASSERT_HEP(hepCommRegister(comm, pointer, pointer == nullptr ? 0 : 1 << 20));
    expect_first_byte(batch, pointer == nullptr ? plain.data() : pointer, 0x3f);
    ASSERT_HEP(hepCommDeregister(comm, pointer));
    batch.self.barrier();
  });
}

TEST(Register, WhatCannotBeSharedIsRefusedOnAllRanks) {
  if (!on_cuda()) GTEST_SKIP() << "the host backend maps no memory of the caller's";
  with_batch([](Batch& batch) {
    const hepComm_t comm = batch.self.comm;
    const bool is_last = batch.self.rank == last_rank();
    const std::string last = "rank " + std::to_string(last_rank());
    {
      VirtualMemory memory(1 << 20, false);
      harness::Buffer plain(batch.backend, 1 << 20);
      batch.self.barrier();
      expect_refused("no handles",
                     hepCommRegister(comm, is_last ? memory.data() : plain.data(), 1 << 20),
                     hepErrorUnsupported, {last, "cuMemCreate"});
      batch.self.barrier();
    }
    std::vector<char> host(4096);
    expect_refused("host memory",
                   hepCommRegister(comm, is_last ? host.data() : nullptr, is_last ? 4096 : 0),
                   hepErrorInvalidArgument, {last, "device memory"});
    harness::Buffer memory(batch.backend, 2 << 20);
    expect_refused(
        "more than there is",
        hepCommRegister(comm, is_last ? memory.data() : nullptr, is_last ? size_t{1} << 40 : 0),
        hepErrorInvalidArgument, {last, "bytes"});
  });
}

TEST(Register, SavesTheCopyOfADispatch) {
  if (!on_cuda()) GTEST_SKIP() << "the host backend copies tokens, and has no graphs";
  with_batch([](Batch& batch) {
    const auto num_nodes = [&batch] {
      harness::Graph graph;
      graph.begin(batch.self.stream);
      EXPECT_HEP(hepDispatch(batch.routing.get(), &batch.dispatch, batch.self.stream.get()));
      graph.end(batch.self.stream);
      return graph.num_nodes();
    };
    const size_t copied = num_nodes();
    ASSERT_HEP(hepCommRegister(batch.self.comm, batch.x.data(), batch.x.bytes()));
    EXPECT_EQ(num_nodes(), copied - 1);
    ASSERT_HEP(hepCommDeregister(batch.self.comm, batch.x.data()));
    EXPECT_EQ(num_nodes(), copied);
    // Only what lies there as a whole is read there.
    ASSERT_HEP(hepCommRegister(batch.self.comm, batch.x.data(), 16));
    EXPECT_EQ(num_nodes(), copied);
  });
}

TEST(Register, RanksWithoutMemoryTakePartWithNull) {
  run_ranks(small_config(), [](Rank& self) {
    EXPECT_HEP(hepCommRegister(self.comm, nullptr, 0));
    EXPECT_HEP(hepCommDeregister(self.comm, nullptr));
    harness::Buffer memory(world().backend(), 4096);
    void* const pointer = self.rank == last_rank() ? memory.data() : nullptr;
    EXPECT_HEP(hepCommRegister(self.comm, pointer, pointer == nullptr ? 0 : 4096));
    EXPECT_HEP(hepCommDeregister(self.comm, pointer));
  });
}

TEST(Register, MemoryIsRegisteredOnceAndKnownByItsBeginning) {
  run_ranks(small_config(), [](Rank& self) {
    harness::Buffer memory(world().backend(), 3072);
    char* const begin = memory.as<char>();
    char* const middle = begin + 1024;
    ASSERT_HEP(hepCommRegister(self.comm, middle, 1024));
    const struct {
      const char* what;
      char* begin;
      size_t bytes;
    } overlaps[] = {{"the same", middle, 1024},
                    {"its end", middle + 1023, 100},
                    {"its beginning", middle - 10, 11},
                    {"all of it", begin, 3072}};
    for (const auto& entry : overlaps)
      expect_refused(entry.what, hepCommRegister(self.comm, entry.begin, entry.bytes),
                     hepErrorInvalidArgument, {"overlap"});
    EXPECT_HEP(hepCommRegister(self.comm, begin, 1024));
    EXPECT_HEP(hepCommRegister(self.comm, middle + 1024, 1024));
    expect_refused("a pointer inside", hepCommDeregister(self.comm, middle + 1),
                   hepErrorInvalidArgument, {"not registered"});
    EXPECT_HEP(hepCommDeregister(self.comm, middle));
    expect_refused("twice", hepCommDeregister(self.comm, middle), hepErrorInvalidArgument,
                   {"not registered"});
    EXPECT_HEP(hepCommRegister(self.comm, middle, 1024));
    expect_refused("bytes of nothing", hepCommRegister(self.comm, nullptr, 16),
                   hepErrorInvalidArgument, {"bytes", "16"});
    expect_refused("nothing somewhere", hepCommRegister(self.comm, middle, 0),
                   hepErrorInvalidArgument, {"bytes", "0"});
  });
}

TEST(Register, ARefusalOnOneRankIsOneOnAllAndLeavesNothingBehind) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs another rank";
  with_batch([](Batch& batch) {
    const hepComm_t comm = batch.self.comm;
    harness::Buffer memory(batch.backend, 8192);
    const bool is_last = batch.self.rank == last_rank();
    const std::string last = "rank " + std::to_string(last_rank());
    ASSERT_HEP(hepCommRegister(comm, memory.data(), 4096));
    char* const next = memory.as<char>() + (is_last ? 0 : 4096);
    expect_refused("overlap on one rank", hepCommRegister(comm, next, 4096),
                   hepErrorInvalidArgument, {last, "overlap"});
    ASSERT_HEP(hepCommRegister(comm, memory.as<char>() + 4096, 4096)) << "after the refusal";
    expect_refused("unknown on one rank",
                   hepCommDeregister(comm, memory.as<char>() + (is_last ? 1 : 0)),
                   hepErrorInvalidArgument, {last, "not registered"});
    EXPECT_HEP(hepCommDeregister(comm, memory.data()));
  });
}

TEST(Register, RanksDeregisterInAnyOrder) {
  with_batch([](Batch& batch) {
    const hepComm_t comm = batch.self.comm;
    harness::Buffer first(batch.backend, 65536), second(batch.backend, 65536);
    ASSERT_HEP(hepCommRegister(comm, first.data(), first.bytes()));
    ASSERT_HEP(hepCommRegister(comm, second.data(), second.bytes()));
    harness::Buffer& gone = batch.self.rank % 2 == 0 ? first : second;
    harness::Buffer& left = batch.self.rank % 2 == 0 ? second : first;
    EXPECT_HEP(hepCommDeregister(comm, gone.data()));
    expect_first_byte(batch, left.data(), 0x3c);
    expect_first_byte(batch, gone.data(), 0x3d);
    EXPECT_HEP(hepCommRegister(comm, gone.data(), gone.bytes())) << "again";
    expect_first_byte(batch, gone.data(), 0x3e);
    // Destroying the communicator undoes what is left.
  });
}

TEST(Register, RanksThatDoNotCallTheSameAreTold) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs another rank";
  run_ranks(small_config(), [](Rank& self) {
    harness::Buffer memory(world().backend(), 4096);
    ASSERT_HEP(hepCommRegister(self.comm, memory.data(), 4096));
    expect_refused(
        "different calls",
        self.rank == last_rank() ? hepCommDeregister(self.comm, memory.data())
                                 : hepCommRegister(self.comm, nullptr, 0),
        hepErrorMismatch,
        {"rank 0", "rank " + std::to_string(last_rank()), "hepCommRegister", "hepCommDeregister"});
    EXPECT_HEP(hepCommDeregister(self.comm, memory.data()));
  });
}

TEST(Register, ThereIsRoomForANumberOfRanges) {
  run_ranks(small_config(), [](Rank& self) {
    constexpr int kRanges = 64;
    harness::Buffer memory(world().backend(), (kRanges + 1) * 256);
    for (int i = 0; i < kRanges; ++i)
      ASSERT_HEP(hepCommRegister(self.comm, memory.as<char>() + i * 256, 256));
    expect_refused("one more", hepCommRegister(self.comm, memory.as<char>() + kRanges * 256, 256),
                   hepErrorInvalidUsage, {"64"});
    EXPECT_HEP(hepCommDeregister(self.comm, memory.as<char>() + 256));
    EXPECT_HEP(hepCommRegister(self.comm, memory.as<char>() + kRanges * 256, 256));
  });
}

TEST(Register, ARankThatDoesNotComeIsNamed) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs a rank that stays away";
  hepConfig_t config = small_config();
  config.timeout_ms = short_timeout_ms();
  run_ranks(config, [](Rank& self) {
    if (self.rank != last_rank()) {
      const std::string last = "rank " + std::to_string(last_rank());
      expect_refused("alone", hepCommRegister(self.comm, nullptr, 0), hepErrorTimeout,
                     {last, "hepCommRegister"});
      hepFailure_t failure = HEP_FAILURE_INITIALIZER;
      EXPECT_HEP(hepCommGetFailure(self.comm, &failure));
      EXPECT_EQ(failure.result, hepErrorTimeout);
      EXPECT_EQ(failure.missing_rank, last_rank());
    }
    self.barrier();
    EXPECT_EQ(hepCommRegister(self.comm, nullptr, 0), hepErrorTimeout) << "a later call";
  });
}

TEST(Register, OperationsThatWaitForAPeerDoNotHoldUpDeregistration) {
  if (!on_cuda()) GTEST_SKIP() << "on the host backend an operation is done when its call returns";
  if (world().num_ranks() == 1) GTEST_SKIP() << "needs a peer to wait for";
  with_batch([](Batch& batch) {
    const hepComm_t comm = batch.self.comm;
    constexpr size_t kBytes = 1 << 20;
    VirtualMemory memory(kBytes, true);
    batch.self.barrier();
    ASSERT_HEP(hepCommRegister(comm, memory.data(), kBytes));
    batch.self.stream.synchronize();
    batch.self.barrier();
    const bool is_last = batch.self.rank == last_rank();
    if (!is_last) {
      EXPECT_HEP(batch.update());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the update is under way
    // Otherwise the update would fail, which the last rank makes only now.
    EXPECT_HEP(hepCommDeregister(comm, memory.data()));
    if (is_last) {
      EXPECT_HEP(batch.update());
    }
    batch.self.stream.synchronize();
    batch.self.barrier();
  });
}

TEST(Register, IsRefusedDuringCapture) {
  if (!on_cuda()) GTEST_SKIP() << "the host backend has no graphs";
  with_batch([](Batch& batch) {
    harness::Buffer memory(batch.backend, 4096);
    {
      harness::Graph graph;
      graph.begin(batch.self.stream);
      expect_refused("register", hepCommRegister(batch.self.comm, memory.data(), 4096),
                     hepErrorInvalidUsage, {"captured"});
      try {
        graph.end(batch.self.stream);
      } catch (const std::runtime_error&) {
        // A call that is not allowed in a capture may end it.
      }
    }
    EXPECT_HEP(hepCommRegister(batch.self.comm, memory.data(), 4096));
  });
}

}  // namespace
