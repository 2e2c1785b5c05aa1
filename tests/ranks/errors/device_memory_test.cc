// SPDX-License-Identifier: Apache-2.0
// Which memory the cuda backend takes, and what it says where there is none left.
#include <string>

#include "harness/device.h"
#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr size_t kMiB = size_t{1} << 20;

class DeviceMemory : public testing::Test {
 protected:
  void SetUp() override {
    if (world().backend() != hepBackendCuda)
      GTEST_SKIP() << "the host backend takes any memory of the process";
  }
};

class ManagedMemory {
 public:
  explicit ManagedMemory(size_t bytes) : data_(harness::device::allocate_managed(bytes)) {}
  ~ManagedMemory() { harness::device::release_managed(data_); }
  ManagedMemory(const ManagedMemory&) = delete;
  ManagedMemory& operator=(const ManagedMemory&) = delete;
  void* data() const { return data_; }

 private:
  void* const data_;
};

void expect_managed_refused(const std::string& name, hepResult_t result) {
  expect_refused(name, result, hepErrorInvalidArgument, {name + " is", "managed memory"});
}

TEST_F(DeviceMemory, ThatIsManagedIsRefusedByName) {
  with_batch([](Batch& batch) {
    const hepRouting_t routing = batch.routing.get();
    const hepStream_t stream = batch.self.stream.get();
    // CUDA may wait for the device as it allocates and frees.
    batch.self.stream.synchronize();
    batch.self.barrier();
    const ManagedMemory managed(kMiB / 16);

    expect_managed_refused("indices of hepUpdate_t",
                           harness::update_routing(routing, managed.data(), Batch::kTokens,
                                                   Batch::kTopK, hepIndexInt32, stream));
    hepDispatchArgs_t dispatch = batch.dispatch;
    dispatch.x = managed.data();
    expect_managed_refused("x", hepDispatch(routing, &dispatch, stream));
    dispatch = batch.dispatch;
    dispatch.rows = managed.data();
    expect_managed_refused("rows", hepDispatch(routing, &dispatch, stream));
    dispatch = batch.dispatch;
    dispatch.row_sources = static_cast<int32_t*>(managed.data());
    expect_managed_refused("row_sources", hepDispatch(routing, &dispatch, stream));
    hepCombineArgs_t combine = batch.combine;
    combine.y = managed.data();
    expect_managed_refused("y", hepCombine(routing, &combine, stream));
    combine = batch.combine;
    combine.out = managed.data();
    expect_managed_refused("out", hepCombine(routing, &combine, stream));
  });
}

// The last rank's device has less room than a window takes.
TEST_F(DeviceMemory, ThatIsFullFailsCreationOnAllRanks) {
  const int last = world().num_ranks() - 1;
  hepConfig_t config = small_config();
  config.backend = hepBackendCuda;
  config.heap_bytes = 1024 * kMiB;
  hepWorkspace_t workspace = HEP_WORKSPACE_INITIALIZER;
  ASSERT_HEP(hepWorkspaceSize(&config, world().num_ranks(), &workspace));
  const uint64_t window = (workspace.total_bytes + 2 * kMiB - 1) / (2 * kMiB) * (2 * kMiB);
  world().run([&](int rank) {
    if (rank == last) harness::device::take_rest(64 * kMiB);
    world().barrier(rank);
    hepComm_t comm = nullptr;
    EXPECT_EQ(world().create_comm(rank, config, &comm), hepErrorOutOfMemory)
        << "rank " << rank << ": " << hepGetLastError();
    EXPECT_EQ(comm, nullptr);
    // Ranks that share the device are full with the last one, and are told in one list.
    expect_mentions(hepGetLastError(), {std::to_string(last) + ": device ",
                                        "has no room for " + std::to_string(window) + " bytes"});
    world().barrier(rank);
    if (rank == last) harness::device::return_rest();
  });
  const hepConfig_t good = small_config();
  run_ranks(good, [&](Rank& self) { expect_working(self, good); });
}

}  // namespace
