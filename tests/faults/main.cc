// SPDX-License-Identifier: Apache-2.0
// The program of the fault table: its options, and the table at the end.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "options.h"
#include "work.h"

namespace {

constexpr int kSkipped = 77;  // what Meson takes for a skipped test

constexpr char kUsage[] =
    "usage: fault_suite [--ranks N] [--victim N] [--backend cuda|host] [GoogleTest options]\n"
    "  --ranks    3 or 4, each in a process of its own, and with a GPU of its own; default: 3\n"
    "  --victim   the rank that the faults are of, not the last; default: 1\n";

bool parse(int argc, char** argv) {
  faults::Options& options = faults::options();
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--ranks")
      options.num_ranks = std::atoi(value.c_str());
    else if (option == "--victim")
      options.victim = std::atoi(value.c_str());
    else if (option == "--backend" && (value == "cuda" || value == "host"))
      options.backend = value == "cuda" ? hepBackendCuda : hepBackendHost;
    else
      return false;
  }
  return argc % 2 == 1 && options.num_ranks >= 3 && options.num_ranks <= 4 && options.victim >= 0 &&
         options.victim < options.num_ranks - 1;
}

}  // namespace

faults::Options& faults::options() {
  static Options instance;
  return instance;
}

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!parse(argc, argv)) {
    std::fputs(kUsage, stderr);
    return EXIT_FAILURE;
  }
  const faults::Options& options = faults::options();
  if (options.backend == hepBackendCuda && faults::count_devices() < options.num_ranks) {
    std::printf("skipped: there are fewer usable GPUs than %d\n", options.num_ranks);
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
