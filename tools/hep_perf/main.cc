// SPDX-License-Identifier: Apache-2.0
// hep_perf: times the operations on every rank at once and compares what they gave with the
// reference. See --help.
#include <cstdio>
#include <exception>
#include <string>

#include "harness/world.h"
#include "options.h"
#include "run.h"

int main(int argc, char** argv) {
  perf::Options options;
  std::string error;
  if (!perf::parse_options(argc, argv, &options, &error)) {
    std::fprintf(stderr, "hep_perf: %s\n", error.c_str());
    return 2;
  }
  if (options.help) {
    std::fputs(perf::help_text().c_str(), stdout);
    return 0;
  }
  if (!harness::World::init(&argc, &argv, {options.ranks, options.backend})) return 1;
  bool succeeded = false;
  try {
    succeeded = perf::run(harness::world(), options);
  } catch (const std::exception& exception) {
    std::fprintf(stderr, "hep_perf: %s\n", exception.what());
  }
  harness::World::finalize();
  return succeeded ? 0 : 1;
}
