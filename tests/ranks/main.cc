// SPDX-License-Identifier: Apache-2.0
// The program of all tests with ranks: its options, and the outcome over all processes.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "harness/world.h"
#include "support.h"

namespace {

constexpr int kSkipped = 77;  // what Meson takes for a skipped test

constexpr char kUsage[] =
    "usage: mpi_suite [--ranks N] [--domain-size N] [--backend auto|cuda|host] [--seed S]\n"
    "                 [--cases N] [--case N]\n"
    "                 [--cycles N] [--replays N] [--soak SECONDS] [--large] [GoogleTest options]\n"
    "  --ranks    all ranks, over all processes of mpirun; default: 4, or one a process\n"
    "  --domain-size  ranks of a domain; default: all\n"
    "  --seed     of the random cases\n"
    "  --cases    how many random cases\n"
    "  --case     runs one random case only\n"
    "  --cycles   how many communicators come and go in the test of that\n"
    "  --replays  how often graphs of low-latency operations are replayed\n"
    "  --soak     how long operations run in the test of that, at least\n"
    "  --large    full-size cases on the host backend too\n";

bool parse_backend(const std::string& name, hepBackend_t* backend) {
  if (name == "auto") {
    *backend = hepBackendAuto;
  } else if (name == "cuda") {
    *backend = hepBackendCuda;
  } else if (name == "host") {
    *backend = hepBackendHost;
  } else {
    return false;
  }
  return true;
}

bool parse(int argc, char** argv, harness::WorldOptions* world) {
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--large") {
      options().large = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const char* const value = argv[++i];
    if (option == "--ranks") {
      world->num_ranks = std::atoi(value);
    } else if (option == "--domain-size") {
      world->domain_size = std::atoi(value);
    } else if (option == "--backend") {
      if (!parse_backend(value, &world->backend)) return false;
    } else if (option == "--seed") {
      options().seed = std::strtoull(value, nullptr, 10);
    } else if (option == "--cases") {
      options().cases = std::atoi(value);
    } else if (option == "--cycles") {
      options().cycles = std::atoi(value);
    } else if (option == "--replays") {
      options().replays = std::atoi(value);
    } else if (option == "--soak") {
      options().soak_seconds = std::atoi(value);
    } else if (option == "--case") {
      options().only_case = std::atoi(value);
    } else {
      return false;
    }
  }
  return true;
}

// The report of a process other than the root: failures only.
class FailureReport : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo& test) override {
    test_ = std::string(test.test_suite_name()) + "." + test.name();
  }
  // Under a lock of GoogleTest, so that it cannot be asked for the test.
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "process of rank %d: %s: %s:%d: %s\n", harness::world().first_rank(),
                 test_.c_str(), result.file_name() == nullptr ? "" : result.file_name(),
                 result.line_number(), result.message());
  }

  std::string test_;
};

int outcome(bool passed) {
  const testing::UnitTest& tests = *testing::UnitTest::GetInstance();
  if (!passed) return EXIT_FAILURE;
  const int ran = tests.test_to_run_count();
  return ran > 0 && tests.skipped_test_count() == ran ? kSkipped : EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  harness::WorldOptions world_options;
  if (!harness::World::started_by_mpi()) world_options.num_ranks = 4;
  if (!parse(argc, argv, &world_options)) {
    std::fputs(kUsage, stderr);
    return EXIT_FAILURE;
  }
  if (world_options.backend == hepBackendCuda && harness::World::num_devices() == 0) {
    std::puts("skipped: there is no usable GPU");
    return kSkipped;
  }
  if (!harness::World::init(&argc, &argv, world_options)) return EXIT_FAILURE;

  const harness::World& world = harness::world();
  if (world.is_root()) {
    std::printf("%d ranks in %d processes, backend %s, seed %llu\n", world.num_ranks(),
                world.num_processes(), world.backend() == hepBackendCuda ? "cuda" : "host",
                static_cast<unsigned long long>(options().seed));
  } else {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());  // all would write the same file
    listeners.Append(new FailureReport);
  }
  const bool passed = RUN_ALL_TESTS() == 0;
  // mpirun ends all processes when one exits with an error, so they agree first.
  const int failed = world.max_over_processes(passed ? 0 : 1);
  if (world.is_root() && passed && failed != 0) {
    std::fputs("FAILED in another process; see its lines above\n", stderr);
  }
  const int status = outcome(failed == 0);
  harness::World::finalize();
  return status;
}
