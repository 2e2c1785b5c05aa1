// SPDX-License-Identifier: Apache-2.0
// A communicator ends without waiting for anybody, whatever is still under way.
#include <chrono>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr double kSoonSeconds = kTimeoutMs / 1000.0 / 4;  // as against a wait for a peer
constexpr std::chrono::milliseconds kUnderWay{200};       // time for an operation to begin

bool is_last(const Rank& self) { return self.rank == world().num_ranks() - 1; }
bool on_cuda() { return world().backend() == hepBackendCuda; }

bool shares_by_ipc() {
  const char* const kind = std::getenv("HEP_MEMORY");
  return kind != nullptr && std::string(kind) == "ipc";
}

void expect_soon(const char* what, const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_LT(took.count(), kSoonSeconds) << what;
}

void destroy_soon(hepComm_t comm) {
  expect_soon("hepCommDestroy", [&] { EXPECT_HEP(hepCommDestroy(comm)); });
}

// Runs body on every rank with a communicator that the body destroys; another one works afterwards.
void run_to_the_end(const hepConfig_t& config, const std::function<void(Rank&)>& body) {
  world().run([&](int rank) {
    hepComm_t comm = nullptr;
    ASSERT_HEP(world().create_comm(rank, config, &comm)) << "rank " << rank;
    harness::Stream stream(world().backend());
    Rank self{rank, comm, stream};
    self.barrier();
    body(self);
    stream.synchronize();
    self.barrier();
  });
  run_ranks(config, [&](Rank& self) { expect_working(self, config); });
}

// Operations without tokens, which need no memory of the caller's and wait for peers all the same.
hepResult_t update_with_nothing(hepRouting_t routing, const harness::Stream& stream) {
  return harness::update_routing(routing, nullptr, 0, 1, hepIndexInt32, stream.get());
}

hepResult_t dispatch_nothing(hepRouting_t routing, const harness::Stream& stream) {
  const hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  return hepDispatch(routing, &args, stream.get());
}

// An update that waits until all ranks have made it: on the host backend in the call.
class WaitingUpdate {
 public:
  WaitingUpdate(hepRouting_t routing, harness::Stream& stream) : stream_(stream) {
    const auto issue = [this, routing, &stream] {
      result_ = update_with_nothing(routing, stream);
      if (result_ != hepSuccess) sentence_ = hepGetLastError();
    };
    if (on_cuda())
      issue();
    else
      thread_ = std::thread(issue);
  }
  ~WaitingUpdate() {
    if (thread_.joinable()) thread_.join();
  }
  WaitingUpdate(const WaitingUpdate&) = delete;
  WaitingUpdate& operator=(const WaitingUpdate&) = delete;

  void expect_done() {
    if (thread_.joinable()) thread_.join();
    stream_.synchronize();
    EXPECT_EQ(result_, hepSuccess) << sentence_;
  }

 private:
  harness::Stream& stream_;
  hepResult_t result_ = hepSuccess;
  std::string sentence_;
  std::thread thread_;
};

TEST(Destroy, DoesNotWaitForAnOperationOfAnotherCommunicator) {
  if (world().num_ranks() == 1) GTEST_SKIP() << "needs a peer to wait for";
  if (on_cuda() && shares_by_ipc())
    GTEST_SKIP() << "CUDA waits for the device as it frees what was shared by cudaIpc";
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    hepComm_t ending = nullptr;
    ASSERT_HEP(world().create_comm(self.rank, config, &ending));
    harness::Stream its_stream(world().backend());
    Rank in_ending{self.rank, ending, its_stream};
    self.barrier();
    expect_working(in_ending, config);
    its_stream.synchronize();
    self.barrier();

    std::optional<WaitingUpdate> update;
    if (!is_last(self)) update.emplace(routing.get(), self.stream);
    std::this_thread::sleep_for(kUnderWay);
    destroy_soon(ending);
    self.barrier();
    if (is_last(self)) update.emplace(routing.get(), self.stream);
    update->expect_done();
    self.barrier();
    expect_working(self, config);
  });
}

TEST(Destroy, EndsItsOperationsThatWaitForAPeer) {
  if (!on_cuda()) GTEST_SKIP() << "on the host backend an operation is done when its call returns";
  if (world().num_ranks() == 1) GTEST_SKIP() << "needs a peer to wait for";
  run_to_the_end(small_config(), [](Rank& self) {
    {
      RoutingHandle routing;
      ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
      self.barrier();
      if (!is_last(self)) {
        EXPECT_HEP(update_with_nothing(routing.get(), self.stream));
        EXPECT_HEP(dispatch_nothing(routing.get(), self.stream));
      }
      self.barrier();
      std::this_thread::sleep_for(kUnderWay);
    }
    destroy_soon(self.comm);
    self.barrier();
  });
}

TEST(Destroy, MayFollowTheLastCallAtOnce) {
  if (world().num_processes() > 1 && shares_by_ipc())
    GTEST_SKIP() << "peers in other processes cannot read what was shared by cudaIpc any more";
  const hepConfig_t config = small_config();
  Random random(options().seed + 70);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update =
      builder.add_update(builder.add_routing(8), config.max_top_k, hepIndexInt32,
                         std::vector<int64_t>(world().num_ranks(), config.max_tokens));
  for (int round = 0; round < 4; ++round) {
    builder.add_dispatch(update, hepLayoutExpertMajor, true);
    builder.add_combine(update, hepLayoutExpertMajor, hepWeightsNone);
  }
  const Job job = builder.finish("operations that nobody waits for");
  run_to_the_end(config, [&](Rank& self) {
    {
      JobRun run(job, self);
      self.barrier();
      EXPECT_TRUE(run.issue());
      self.barrier();  // a rank that leaves ends what the others have yet to issue
    }
    destroy_soon(self.comm);
  });
}

TEST(Destroy, MayFollowTheLaunchOfAGraph) {
  if (!on_cuda()) GTEST_SKIP() << "the host backend has no graphs";
  run_to_the_end(small_config(), [](Rank& self) {
    harness::Graph graph;
    {
      RoutingHandle routing;
      ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
      self.barrier();
      graph.begin(self.stream);
      EXPECT_HEP(update_with_nothing(routing.get(), self.stream));
      EXPECT_HEP(dispatch_nothing(routing.get(), self.stream));
      graph.end(self.stream);
      self.barrier();
      // Graphs of ranks on one device need not run at the same time; there, none is launched.
      if (!world().shares_devices()) graph.launch(self.stream);
    }
    destroy_soon(self.comm);
    self.stream.synchronize();
  });
}

}  // namespace
