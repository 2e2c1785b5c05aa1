// SPDX-License-Identifier: Apache-2.0
// Memory of the caller's that is registered: what is refused, and that its tokens are dispatched.
#include <vector>

#include "spoilt_batch.h"
#include "support.h"

namespace {

using harness::world;

TEST(Register, TokensInRegisteredMemoryAreDispatched) {
  if (world().backend() != hepBackendHost) GTEST_SKIP() << "the host backend alone serves it yet";
  with_batch([](Batch& batch) {
    const hepComm_t comm = batch.self.comm;
    EXPECT_HEP(hepCommRegister(comm, batch.x.data(), batch.x.bytes()));
    batch.x.fill(0x3c);
    batch.rows.fill(0);
    ASSERT_HEP(hepDispatch(batch.routing.get(), &batch.dispatch, batch.self.stream.get()));
    batch.self.stream.synchronize();
    if (batch.self.rank == 0) {  // which hosts expert 0, the choice of all tokens
      unsigned char first = 0;
      batch.rows.download(&first, 1);
      EXPECT_EQ(first, 0x3c);
    }
    EXPECT_HEP(hepCommDeregister(comm, batch.x.data()));
  });
}

TEST(Register, RanksWithoutMemoryTakePartWithNull) {
  if (world().backend() != hepBackendHost) GTEST_SKIP() << "the host backend alone serves it yet";
  run_ranks(small_config(), [](Rank& self) {
    EXPECT_HEP(hepCommRegister(self.comm, nullptr, 0));
    EXPECT_HEP(hepCommDeregister(self.comm, nullptr));
  });
}

TEST(Register, MemoryIsRegisteredOnceAndKnownByItsBeginning) {
  if (world().backend() != hepBackendHost) GTEST_SKIP() << "the host backend alone serves it yet";
  run_ranks(small_config(), [](Rank& self) {
    std::vector<char> memory(3072);
    char* const middle = memory.data() + 1024;
    ASSERT_HEP(hepCommRegister(self.comm, middle, 1024));
    const struct {
      const char* what;
      char* begin;
      size_t bytes;
    } overlaps[] = {{"the same", middle, 1024},
                    {"its end", middle + 1023, 100},
                    {"its beginning", middle - 10, 11},
                    {"all of it", memory.data(), 3072}};
    for (const auto& entry : overlaps)
      expect_refused(entry.what, hepCommRegister(self.comm, entry.begin, entry.bytes),
                     hepErrorInvalidArgument, {"overlap"});
    EXPECT_HEP(hepCommRegister(self.comm, memory.data(), 1024));
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

TEST(Register, IsRefusedWhereItIsNotServed) {
  if (world().backend() == hepBackendHost) GTEST_SKIP() << "the host backend serves it";
  run_ranks(small_config(), [](Rank& self) {
    expect_refused("register", hepCommRegister(self.comm, nullptr, 0), hepErrorUnsupported,
                   {"hepCommRegister"});
    expect_refused("deregister", hepCommDeregister(self.comm, nullptr), hepErrorUnsupported,
                   {"hepCommDeregister"});
  });
}

}  // namespace
