// SPDX-License-Identifier: Apache-2.0
// A creation that fails at one of its steps on one rank fails on every rank, in time, leaves
// nothing behind, and the next one works. The ranks are processes, of which one has two ranks.
#include <dirent.h>
#include <gtest/gtest.h>
#include <hybridep.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/fault_point.h"
#include "base/status.h"
#include "faults/crew.h"
#include "harness/update.h"

namespace hep {
namespace {

using faults::Crew;
using faults::Shared;

constexpr int kProcesses = 2;
constexpr int kRanks = 3;  // 0 and 2 in the first process, 1 in the second
constexpr int kTimeoutMs = 20000;

// What the hook reads.
std::string failing_step;
int failing_rank = -1;

Status fail_there(const char* step, int rank) {
  if (step != failing_step || rank != failing_rank) return Status();
  return error(hepErrorSystem, "rank %d: the test lets step %s fail", rank, step);
}

void require(bool condition, const std::string& text) {
  if (!condition) throw std::runtime_error(text);
}

int entries_of(const char* path) {
  int count = 0;
  DIR* const directory = ::opendir(path);
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

int window_mappings() {
  std::ifstream file("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(file, line);)
    count += line.find("memfd:") != std::string::npos;
  return count;
}

struct Holdings {
  int descriptors = entries_of("/proc/self/fd");
  int threads = entries_of("/proc/self/task");
  int mappings = window_mappings();

  bool operator<=(const Holdings& other) const {
    return descriptors <= other.descriptors && threads <= other.threads &&
           mappings <= other.mappings;
  }
};

// The thread of a rendezvous ends by itself, a moment after its ranks have left.
Holdings when_steady() {
  constexpr int kSteadyMs = 100;
  Holdings now;
  for (double since = faults::now_ms(); faults::now_ms() - since < kSteadyMs;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const Holdings next;
    if (!(next <= now && now <= next)) since = faults::now_ms();
    now = next;
  }
  return now;
}

Holdings when_within(const Holdings& wanted) {
  constexpr int kLongestMs = 10000;
  Holdings now;
  for (const double begin = faults::now_ms();
       !(now <= wanted) && faults::now_ms() - begin < kLongestMs; now = Holdings())
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  return now;
}

// In tests of killed processes each has one rank.
bool kills = false;

std::vector<int> ranks_of(int process) {
  if (kills) return {process};
  return process == 0 ? std::vector<int>{0, 2} : std::vector<int>{1};
}

void expect_failed(int rank, hepResult_t result, hepComm_t comm) {
  const std::string sentence = hepGetLastError();
  require(result == hepErrorSystem, "rank " + std::to_string(rank) + ": " + sentence);
  require(comm == nullptr, "a communicator in spite of the error");
  const std::string expected = "rank " + std::to_string(failing_rank) + ": the test lets step";
  require(sentence.find(expected) != std::string::npos, sentence);
}

void expect_working(hepComm_t comm) {
  hepRouting_t routing = nullptr;
  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  require(hepRoutingCreate(&routing, comm, nullptr) == hepSuccess, hepGetLastError());
  require(harness::update_routing(routing, nullptr, 0, 1, hepIndexInt32, nullptr) == hepSuccess,
          hepGetLastError());
  require(hepDispatch(routing, &args, nullptr) == hepSuccess, hepGetLastError());
  require(hepRoutingDestroy(routing) == hepSuccess, hepGetLastError());
}

hepConfig_t make_config() {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendHost;
  config.max_tokens = 8;
  config.hidden = 64;
  config.num_experts = kRanks;
  config.init_timeout_ms = kTimeoutMs;
  return config;
}

// All ranks of this process create a communicator, each on a thread.
void create(int process, const hepUniqueId_t& id, bool fails) {
  const hepConfig_t config = make_config();
  std::vector<std::string> complaints(kRanks);
  std::vector<std::thread> threads;
  for (const int rank : ranks_of(process))
    threads.emplace_back([&, rank] {
      try {
        hepComm_t comm = nullptr;
        const hepResult_t result = hepCommInitRank(&comm, kRanks, &id, rank, &config);
        if (fails) return expect_failed(rank, result, comm);
        require(result == hepSuccess, hepGetLastError());
        expect_working(comm);
        require(hepCommDestroy(comm) == hepSuccess, hepGetLastError());
      } catch (const std::exception& complaint) {
        complaints[rank] = complaint.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  std::string all;
  for (const std::string& complaint : complaints)
    if (!complaint.empty()) all += (all.empty() ? "" : "; ") + complaint;
  require(all.empty(), all);
}

hepUniqueId_t share_id(int process, int round, Shared& shared) {
  if (process == 0) {
    require(hepGetUniqueId(&shared.ids[round]) == hepSuccess, hepGetLastError());
    shared.id_ready[round].store(1);
  }
  while (shared.id_ready[round].load() == 0) std::this_thread::yield();
  return shared.ids[round];
}

void run_process(int process, Shared& shared) {
  create(process, share_id(process, 0, shared), false);  // what comes with the first stays
  const Holdings before = when_steady();
  fault_hook = fail_there;
  create(process, share_id(process, 1, shared), true);
  const Holdings after = when_within(before);
  require(after <= before, std::to_string(after.descriptors - before.descriptors) +
                               " descriptors, " + std::to_string(after.threads - before.threads) +
                               " threads and " + std::to_string(after.mappings - before.mappings) +
                               " mappings are left");
  fault_hook = nullptr;
  create(process, share_id(process, 2, shared), false);
}

void expect_told_of_the_dead(int rank, hepResult_t result, const std::string& sentence) {
  require(result == hepErrorPeerLost, "rank " + std::to_string(rank) + ": " + sentence);
  require(sentence.find("rank " + std::to_string(failing_rank)) != std::string::npos, sentence);
}

Status die_there(const char* step, int rank) {
  if (step == failing_step && rank == failing_rank) ::raise(SIGKILL);
  return Status();
}

// The process of the rendezvous has to live until all ranks have returned.
void await_the_others(int process, Shared& shared) {
  shared.ranks[process].point.store(1);
  for (int other = 0; process == 0 && other < kRanks; ++other)
    while (other != failing_rank && shared.ranks[other].point.load() == 0)
      std::this_thread::yield();
}

void run_process_beside_one_that_dies(int process, Shared& shared) {
  const hepUniqueId_t id = share_id(process, 0, shared);
  const hepConfig_t config = make_config();
  fault_hook = die_there;
  hepComm_t comm = nullptr;
  const hepResult_t result = hepCommInitRank(&comm, kRanks, &id, process, &config);
  const std::string sentence = hepGetLastError();
  await_the_others(process, shared);
  expect_told_of_the_dead(process, result, sentence);
}

class InitFaults : public testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(InitFaults, OnOneRankFailOnEveryRankAndLeaveNothing) {
  failing_step = std::get<0>(GetParam());
  failing_rank = std::get<1>(GetParam());
  Crew crew(kProcesses, run_process);
  for (int process = 0; process < kProcesses; ++process) {
    EXPECT_TRUE(crew.ended(process));
    EXPECT_STREQ(crew.shared().ranks[process].report.complaint, "") << "process " << process;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryStep, InitFaults,
                         testing::Combine(testing::Values("prepare", "window", "listen", "meet",
                                                          "map", "connect", "backend", "start"),
                                          testing::Range(0, kRanks)),
                         [](const testing::TestParamInfo<std::tuple<const char*, int>>& info) {
                           return std::string(std::get<0>(info.param)) + "OnRank" +
                                  std::to_string(std::get<1>(info.param));
                         });

// Rank 0's process has the rendezvous.
class InitDeaths : public testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(InitDeaths, AreKnownToEveryRankByNumber) {
  failing_step = std::get<0>(GetParam());
  failing_rank = std::get<1>(GetParam());
  kills = true;
  Crew crew(kRanks, run_process_beside_one_that_dies);
  for (int process = 0; process < kRanks; ++process) {
    if (process == failing_rank) continue;
    EXPECT_TRUE(crew.ended(process));
    EXPECT_STREQ(crew.shared().ranks[process].report.complaint, "") << "process " << process;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryStep, InitDeaths,
                         testing::Combine(testing::Values("window", "listen", "meet", "map",
                                                          "connect", "backend", "start"),
                                          testing::Range(1, kRanks)),
                         [](const testing::TestParamInfo<std::tuple<const char*, int>>& info) {
                           return std::string(std::get<0>(info.param)) + "OfRank" +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace hep
