// SPDX-License-Identifier: Apache-2.0
// A communicator of NCCL makes one of this library, with its ranks and devices.
#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "ranks/support.h"

namespace {

using harness::world;

// Of NCCL's 2.x releases.
struct NcclId {
  char bytes[128];
};

struct Nccl {
  int (*get_unique_id)(NcclId* id);
  int (*comm_init_rank)(ncclComm** comm, int num_ranks, NcclId id, int rank);
  int (*comm_destroy)(ncclComm* comm);

  // False if it is not installed. It stays loaded.
  bool open() {
    const char* chosen = std::getenv("HEP_NCCL_LIBRARY");
    void* library = dlopen(chosen != nullptr ? chosen : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    return library != nullptr && find(library, "ncclGetUniqueId", &get_unique_id) &&
           find(library, "ncclCommInitRank", &comm_init_rank) &&
           find(library, "ncclCommDestroy", &comm_destroy);
  }

 private:
  template <typename Function>
  static bool find(void* library, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library, name));
    return *function != nullptr;
  }
};

TEST(InitNccl, MakesACommunicatorThatOutlivesNccls) {
  if (world().backend() != hepBackendCuda) GTEST_SKIP() << "NCCL needs GPUs";
  if (world().shares_devices()) GTEST_SKIP() << "NCCL does not serve several ranks of one device";
  Nccl nccl;
  if (!nccl.open()) GTEST_SKIP() << "NCCL is not installed";

  const hepConfig_t config = small_config();
  world().run([&](int rank) {
    NcclId id{};
    if (rank == 0) {
      ASSERT_EQ(nccl.get_unique_id(&id), 0);
    }
    std::vector<NcclId> ids(world().num_ranks());
    world().all_gather(rank, &id, ids.data(), sizeof id);
    ncclComm* theirs = nullptr;
    ASSERT_EQ(nccl.comm_init_rank(&theirs, world().num_ranks(), ids[0], rank), 0);

    hepComm_t comm = nullptr;
    ASSERT_HEP(hepCommInitNccl(&comm, theirs, &config)) << "rank " << rank;
    EXPECT_EQ(nccl.comm_destroy(theirs), 0);
    int own_rank = -1, device = -1;
    EXPECT_HEP(hepCommUserRank(comm, &own_rank));
    EXPECT_HEP(hepCommDevice(comm, &device));
    EXPECT_EQ(own_rank, rank);
    EXPECT_EQ(device, world().device(rank));
    {
      harness::Stream stream(world().backend());
      Rank self{rank, comm, stream};
      self.barrier();
      expect_working(self, config);
      stream.synchronize();
      self.barrier();
    }
    EXPECT_HEP(hepCommDestroy(comm));
  });
}

}  // namespace
