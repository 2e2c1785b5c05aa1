// SPDX-License-Identifier: Apache-2.0
// Handles that are none, structs that do not say what they are, configs that break a rule: every
// function refuses them with a sentence.
#include <functional>
#include <string>
#include <vector>

#include "ranks/support.h"

namespace {

using harness::world;

// Every function that takes a communicator refuses this one.
void expect_comm_refused(hepComm_t comm, const std::string& what) {
  int number = 0;
  hepBackend_t backend;
  hepResult_t error = hepSuccess;
  void* pointer = nullptr;
  hepRouting_t routing = nullptr;
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  constexpr hepResult_t kInvalid = hepErrorInvalidArgument;
  expect_refused(what + ": count", hepCommCount(comm, &number), kInvalid, {"comm"});
  expect_refused(what + ": rank", hepCommUserRank(comm, &number), kInvalid, {"comm"});
  expect_refused(what + ": device", hepCommDevice(comm, &number), kInvalid, {"comm"});
  expect_refused(what + ": backend", hepCommBackend(comm, &backend), kInvalid, {"comm"});
  expect_refused(what + ": limits", hepCommLimits(comm, &limits), kInvalid, {"comm"});
  expect_refused(what + ": abort", hepCommAbort(comm), kInvalid, {"comm"});
  expect_refused(what + ": async error", hepCommGetAsyncError(comm, &error), kInvalid, {"comm"});
  expect_refused(what + ": failure", hepCommGetFailure(comm, &failure), kInvalid, {"comm"});
  expect_refused(what + ": allocate", hepMemAlloc(comm, 256, &pointer), kInvalid, {"comm"});
  expect_refused(what + ": free", hepMemFree(comm, &number), kInvalid, {"comm"});
  expect_refused(what + ": register", hepCommRegister(comm, &number, 4), kInvalid, {"comm"});
  expect_refused(what + ": deregister", hepCommDeregister(comm, &number), kInvalid, {"comm"});
  expect_refused(what + ": routing", hepRoutingCreate(&routing, comm, nullptr), kInvalid, {"comm"});
}

void expect_routing_refused(hepRouting_t routing, const std::string& what) {
  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
  hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
  constexpr hepResult_t kInvalid = hepErrorInvalidArgument;
  expect_refused(what + ": update",
                 harness::update_routing(routing, nullptr, 0, 1, hepIndexInt32, nullptr), kInvalid,
                 {"routing"});
  expect_refused(what + ": view", hepRoutingGetView(routing, &view), kInvalid, {"routing"});
  expect_refused(what + ": query", hepRoutingQuery(routing, &counts, nullptr), kInvalid,
                 {"routing"});
  expect_refused(what + ": dispatch", hepDispatch(routing, &dispatch, nullptr), kInvalid,
                 {"routing"});
  expect_refused(what + ": combine", hepCombine(routing, &combine, nullptr), kInvalid, {"routing"});
}

TEST(BadObject, NullHandlesAreRefused) {
  expect_comm_refused(nullptr, "NULL");
  expect_routing_refused(nullptr, "NULL");
}

TEST(BadObject, PointersToOtherThingsAreRefused) {
  alignas(64) static char memory[8192] = {};
  expect_comm_refused(reinterpret_cast<hepComm_t>(memory), "zeros");
  expect_routing_refused(reinterpret_cast<hepRouting_t>(memory), "zeros");
  expect_refused("destroy", hepCommDestroy(reinterpret_cast<hepComm_t>(memory)),
                 hepErrorInvalidArgument, {"comm"});
  expect_refused("destroy", hepRoutingDestroy(reinterpret_cast<hepRouting_t>(memory)),
                 hepErrorInvalidArgument, {"routing"});
}

TEST(BadObject, DestroyedHandlesAreRefused) {
  const hepConfig_t config = small_config();
  hepComm_t destroyed = nullptr;
  run_ranks(config, [&](Rank& self) {
    hepRouting_t routing = nullptr;
    ASSERT_HEP(hepRoutingCreate(&routing, self.comm, nullptr));
    ASSERT_HEP(hepRoutingDestroy(routing));
    expect_routing_refused(routing, "a routing after its end");
    expect_refused("destroying it again", hepRoutingDestroy(routing), hepErrorInvalidArgument,
                   {"routing", "destroyed"});
    if (self.rank == world().first_rank()) destroyed = self.comm;
  });
  expect_comm_refused(destroyed, "a communicator after its end");
  expect_refused("destroying it again", hepCommDestroy(destroyed), hepErrorInvalidArgument,
                 {"comm", "destroyed"});
}

TEST(BadObject, HandlesAreNotTakenForEachOther) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    self.barrier();
    expect_comm_refused(reinterpret_cast<hepComm_t>(routing.get()), "routing");
    expect_routing_refused(reinterpret_cast<hepRouting_t>(self.comm), "comm");
    expect_working(self, config);
  });
}

TEST(BadObject, NullOutputsAreRefused) {
  run_ranks(small_config(), [](Rank& self) {
    constexpr hepResult_t kInvalid = hepErrorInvalidArgument;
    expect_refused("version", hepGetVersion(nullptr), kInvalid, {"version"});
    expect_refused("id", hepGetUniqueId(nullptr), kInvalid, {"id"});
    expect_refused("count", hepCommCount(self.comm, nullptr), kInvalid, {"num_ranks"});
    expect_refused("rank", hepCommUserRank(self.comm, nullptr), kInvalid, {"rank"});
    expect_refused("device", hepCommDevice(self.comm, nullptr), kInvalid, {"device"});
    expect_refused("backend", hepCommBackend(self.comm, nullptr), kInvalid, {"backend"});
    expect_refused("error", hepCommGetAsyncError(self.comm, nullptr), kInvalid, {"error"});
    expect_refused("pointer", hepMemAlloc(self.comm, 256, nullptr), kInvalid, {"pointer"});
    expect_refused("routing", hepRoutingCreate(nullptr, self.comm, nullptr), kInvalid, {"routing"});
  });
}

// A struct must say its size and its magic number.
template <typename T>
void expect_header_checked(const std::string& name, const T& good,
                           const std::function<hepResult_t(T*)>& call) {
  T no_size = good, short_size = good, other_magic = good;
  no_size.size = 0;
  short_size.size = 15;
  other_magic.magic ^= 1;
  constexpr hepResult_t kInvalid = hepErrorInvalidArgument;
  expect_refused(name + " of size 0", call(&no_size), kInvalid, {name});
  expect_refused(name + " of size 15", call(&short_size), kInvalid, {name});
  expect_refused(name + " with another magic", call(&other_magic), kInvalid, {name});
  expect_refused(name + " NULL", call(nullptr), kInvalid, {name});
}

// A struct of a newer header is read if its new fields are zero, and refused otherwise.
template <typename T>
void expect_tail_checked(const std::string& name, const T& good,
                         const std::function<hepResult_t(T*)>& call, hepResult_t result_of_good) {
  struct {
    T known;
    int64_t unknown[3];
  } newer = {good, {0, 0, 0}};
  newer.known.size = sizeof newer;
  EXPECT_EQ(call(&newer.known), result_of_good) << name << ": " << hepGetLastError();
  newer.unknown[2] = int64_t{1} << 56;
  expect_refused(name + " with an unknown field", call(&newer.known), hepErrorUnsupported, {name});
}

TEST(BadObject, StructsMustSayWhatTheyAre) {
  const hepConfig_t good = small_config();
  const int num_ranks = world().num_ranks();
  run_ranks(good, [&](Rank& self) {
    RoutingHandle handle;
    ASSERT_HEP(hepRoutingCreate(handle.out(), self.comm, nullptr));
    self.barrier();
    const hepRouting_t routing = handle.get();
    const hepStream_t stream = self.stream.get();
    ASSERT_HEP(harness::update_routing(routing, nullptr, 0, 1, hepIndexInt32, stream));
    hepRouting_t unused = nullptr;

    expect_header_checked<hepConfig_t>(
        "hepConfig_t", good, [&](hepConfig_t* c) { return hepConfigCheck(c, num_ranks); });
    expect_header_checked<hepWorkspace_t>(
        "hepWorkspace_t", HEP_WORKSPACE_INITIALIZER,
        [&](hepWorkspace_t* w) { return hepWorkspaceSize(&good, num_ranks, w); });
    expect_header_checked<hepLimits_t>("hepLimits_t", HEP_LIMITS_INITIALIZER,
                                       [&](hepLimits_t* l) { return hepCommLimits(self.comm, l); });
    expect_header_checked<hepFailure_t>(
        "hepFailure_t", HEP_FAILURE_INITIALIZER,
        [&](hepFailure_t* f) { return hepCommGetFailure(self.comm, f); });
    expect_header_checked<hepRoutingView_t>(
        "hepRoutingView_t", HEP_ROUTING_VIEW_INITIALIZER,
        [&](hepRoutingView_t* v) { return hepRoutingGetView(routing, v); });
    expect_header_checked<hepRoutingCounts_t>(
        "hepRoutingCounts_t", HEP_ROUTING_COUNTS_INITIALIZER,
        [&](hepRoutingCounts_t* c) { return hepRoutingQuery(routing, c, stream); });
    expect_header_checked<hepUpdate_t>("hepUpdate_t", HEP_UPDATE_INITIALIZER, [&](hepUpdate_t* u) {
      return hepRoutingUpdate(routing, u, stream);
    });
    expect_header_checked<hepDispatchArgs_t>(
        "hepDispatchArgs_t", HEP_DISPATCH_ARGS_INITIALIZER,
        [&](hepDispatchArgs_t* a) { return hepDispatch(routing, a, stream); });
    expect_header_checked<hepCombineArgs_t>(
        "hepCombineArgs_t", HEP_COMBINE_ARGS_INITIALIZER,
        [&](hepCombineArgs_t* a) { return hepCombine(routing, a, stream); });

    // NULL is legal here, so it is not part of the common checks.
    hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.magic = HEP_CONFIG_MAGIC;
    expect_refused("hepRoutingConfig_t", hepRoutingCreate(&unused, self.comm, &config),
                   hepErrorInvalidArgument, {"hepRoutingConfig_t"});
    config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.size = 8;
    expect_refused("hepRoutingConfig_t", hepRoutingCreate(&unused, self.comm, &config),
                   hepErrorInvalidArgument, {"hepRoutingConfig_t"});
    self.barrier();
    expect_working(self, good);
  });
}

TEST(BadObject, FieldsOfNewerHeadersMustBeZero) {
  const hepConfig_t good = small_config();
  run_ranks(good, [&](Rank& self) {
    RoutingHandle handle;
    ASSERT_HEP(hepRoutingCreate(handle.out(), self.comm, nullptr));
    expect_tail_checked<hepRoutingConfig_t>(
        "hepRoutingConfig_t", HEP_ROUTING_CONFIG_INITIALIZER,
        [&](hepRoutingConfig_t* c) {
          hepRouting_t created = nullptr;
          const hepResult_t result = hepRoutingCreate(&created, self.comm, c);
          hepRoutingDestroy(created);
          return result;
        },
        hepSuccess);
    self.barrier();
    const hepRouting_t routing = handle.get();
    const hepStream_t stream = self.stream.get();
    ASSERT_HEP(harness::update_routing(routing, nullptr, 0, 1, hepIndexInt32, stream));
    expect_tail_checked<hepConfig_t>(
        "hepConfig_t", good, [](hepConfig_t* c) { return hepConfigCheck(c, world().num_ranks()); },
        hepSuccess);
    expect_tail_checked<hepUpdate_t>(
        "hepUpdate_t", harness::make_update(nullptr, 0, 1, hepIndexInt32),
        [&](hepUpdate_t* u) { return hepRoutingUpdate(routing, u, stream); }, hepSuccess);
    expect_tail_checked<hepDispatchArgs_t>(
        "hepDispatchArgs_t", HEP_DISPATCH_ARGS_INITIALIZER,
        [&](hepDispatchArgs_t* a) { return hepDispatch(routing, a, stream); }, hepSuccess);
    expect_tail_checked<hepCombineArgs_t>(
        "hepCombineArgs_t", HEP_COMBINE_ARGS_INITIALIZER,
        [&](hepCombineArgs_t* a) { return hepCombine(routing, a, stream); }, hepSuccess);
    expect_tail_checked<hepRoutingCounts_t>(
        "hepRoutingCounts_t", HEP_ROUTING_COUNTS_INITIALIZER,
        [&](hepRoutingCounts_t* c) { return hepRoutingQuery(routing, c, stream); }, hepSuccess);
    self.stream.synchronize();
    self.barrier();
    expect_working(self, good);
  });
}

TEST(BadObject, ConfigsThatBreakARuleAreRefused) {
  const int num_ranks = world().num_ranks();
  const struct {
    const char* mention;
    int32_t hepConfig_t::*field;
    int32_t value;
    hepResult_t expected;
  } table[] = {
      {"max_top_k", &hepConfig_t::max_top_k, 33, hepErrorInvalidArgument},
      {"max_top_k", &hepConfig_t::max_top_k, -1, hepErrorInvalidArgument},
      {"max_tokens", &hepConfig_t::max_tokens, 0, hepErrorInvalidArgument},
      {"max_tokens", &hepConfig_t::max_tokens, 65537, hepErrorInvalidArgument},
      {"num_experts", &hepConfig_t::num_experts, 0, hepErrorInvalidArgument},
      {"num_experts", &hepConfig_t::num_experts, 4096 * num_ranks + num_ranks,
       hepErrorInvalidArgument},
      {"hidden", &hepConfig_t::hidden, 0, hepErrorInvalidArgument},
      {"hidden", &hepConfig_t::hidden, 12, hepErrorInvalidArgument},
      {"hidden", &hepConfig_t::hidden, 32776, hepErrorInvalidArgument},
      {"backend", &hepConfig_t::backend, 5, hepErrorInvalidArgument},
      {"type", &hepConfig_t::type, 99, hepErrorInvalidArgument},
      {"combine_type", &hepConfig_t::combine_type, hepTypeBytes, hepErrorInvalidArgument},
      {"partial_type", &hepConfig_t::partial_type, hepTypeFloat16, hepErrorInvalidArgument},
      {"timeout_ms", &hepConfig_t::timeout_ms, -1, hepErrorInvalidArgument},
      {"init_timeout_ms", &hepConfig_t::init_timeout_ms, -1, hepErrorInvalidArgument},
      {"sm_budget", &hepConfig_t::sm_budget, -1, hepErrorInvalidArgument},
      {"routing_threads", &hepConfig_t::routing_threads, 33, hepErrorInvalidArgument},
      {"scale_bytes", &hepConfig_t::scale_bytes, -4, hepErrorInvalidArgument},
      {"low_latency_tokens", &hepConfig_t::low_latency_tokens, -3, hepErrorInvalidArgument},
      {"low_latency_tokens", &hepConfig_t::low_latency_tokens, 65537, hepErrorInvalidArgument},
      {"low_latency_blocks", &hepConfig_t::low_latency_blocks, 257, hepErrorInvalidArgument},
      {"lanes", &hepConfig_t::lanes, 5, hepErrorInvalidArgument},
  };
  for (const auto& entry : table) {
    hepConfig_t config = small_config();
    config.*entry.field = entry.value;
    const std::string what = std::string(entry.mention) + " " + std::to_string(entry.value);
    expect_refused(what, hepConfigCheck(&config, num_ranks), entry.expected, {entry.mention});
    EXPECT_NE(std::string(hepGetLastError()).find(std::to_string(entry.value)), std::string::npos)
        << what << ": the value is missing in: " << hepGetLastError();
  }
}

TEST(BadObject, ConfigsThatDoNotFitTheNumberOfRanksAreRefused) {
  hepConfig_t config = small_config();
  config.num_experts = 9;
  expect_refused("9 experts on 4 ranks", hepConfigCheck(&config, 4), hepErrorInvalidArgument,
                 {"9"});
  config = small_config();
  config.domain_size = 3;
  config.num_experts = 8;
  expect_refused("domains of 3 of 4 ranks", hepConfigCheck(&config, 4), hepErrorInvalidArgument,
                 {"domain_size", "divide"});
  expect_refused("no ranks", hepConfigCheck(&config, 0), hepErrorInvalidArgument, {"num_ranks"});
  expect_refused("73 ranks", hepConfigCheck(&config, 73), hepErrorInvalidArgument, {"73"});
}

TEST(BadObject, InitRefusesArgumentsThatMakeNoSense) {
  hepConfig_t config = small_config();
  config.backend = world().backend();
  config.num_experts = 8;
  config.domain_size = 0;
  config.init_timeout_ms = 500;
  hepUniqueId_t id;
  ASSERT_HEP(hepGetUniqueId(&id));
  hepUniqueId_t zeros{};
  hepComm_t comm = nullptr;
  constexpr hepResult_t kInvalid = hepErrorInvalidArgument;
  expect_refused("no output", hepCommInitRank(nullptr, 1, &id, 0, &config), kInvalid, {"comm"});
  expect_refused("no id", hepCommInitRank(&comm, 1, nullptr, 0, &config), kInvalid, {"id"});
  expect_refused("zeros for an id", hepCommInitRank(&comm, 1, &zeros, 0, &config), kInvalid,
                 {"id"});
  expect_refused("rank 1 of 1", hepCommInitRank(&comm, 1, &id, 1, &config), kInvalid, {"rank"});
  expect_refused("rank -1", hepCommInitRank(&comm, 1, &id, -1, &config), kInvalid, {"rank"});
  expect_refused("no ranks", hepCommInitRank(&comm, 0, &id, 0, &config), kInvalid, {"num_ranks"});
  expect_refused("73 ranks", hepCommInitRank(&comm, 73, &id, 0, &config), kInvalid, {"num_ranks"});
  expect_refused("no callback", hepCommInitCallback(&comm, 1, 0, nullptr, nullptr, &config),
                 kInvalid, {"all_gather"});
  expect_refused("no list", hepCommInitAll(nullptr, 1, nullptr, &config), kInvalid, {"comms"});
  expect_refused("no NCCL", hepCommInitNccl(&comm, nullptr, &config), kInvalid, {"nccl"});
  EXPECT_EQ(comm, nullptr);
}

}  // namespace
