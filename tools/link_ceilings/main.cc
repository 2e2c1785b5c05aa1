// SPDX-License-Identifier: Apache-2.0
// link_ceilings: what the links between the GPUs of this machine give without any protocol.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "bench/gpu.h"
#include "bench/results.h"
#include "ceilings.h"

namespace {

using namespace bench;

struct CeilingOptions {
  int gpus = 0;  // 0: all
  std::vector<int> sms = {4, 8, 16, 24, 32};
  std::string json, commit;
};

void add_options(CLI::App* app, CeilingOptions* options) {
  app->add_option("-g,--gpus", options->gpus, "GPUs, the first ones (default: all)")
      ->check(CLI::Range(1, 1024).description(""));
  app->add_option("-s,--sms", options->sms, "SMs that copy (default: 4,8,16,24,32)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("LIST")
      ->check(CLI::Range(1, 1024).description(""));
  app->add_option("-j,--json", options->json, "append a JSON line for each ceiling to this file")
      ->type_name("FILE");
  app->add_option("-C,--commit", options->commit,
                  "commit for the JSON lines (default: that of the build)")
      ->type_name("TEXT");
}

// Throws std::runtime_error if nothing could be measured.
void run(const CeilingOptions& options) {
  const int seen = gpu_info().count;
  const int gpus = options.gpus == 0 ? seen : options.gpus;
  if (seen == 0 || gpus > seen) {
    throw std::runtime_error("this process sees " + std::to_string(seen) + " GPUs");
  }
  Json run = describe_machine("link_ceilings", options.commit, hepBackendCuda);
  run["gpus"] = gpus;
  print_run(run);
  ResultsFile file(options.json, run);
  const Ceilings ceilings = measure_ceilings(gpus, options.sms);
  if (!ceilings.skipped.empty()) throw std::runtime_error(ceilings.skipped);
  for (const Ceiling& ceiling : ceilings.all) {
    print_ceiling(ceiling);
    file.add({{"operation", ceiling.name},
              {"sms", ceiling.sms},
              {"gbps", rounded(ceiling.gbps)},
              {"wrong", 0}});
  }
}

}  // namespace

int main(int argc, char** argv) {
  CeilingOptions options;
  CLI::App app(
      "link_ceilings: GB/s of plain copies between the GPUs of this machine, all GPUs at once, "
      "the\n"
      "slowest counting; with one GPU, copies to itself. Each transfer is checked before it is "
      "timed.");
  add_options(&app, &options);
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
    return 0;
  } catch (const std::exception& exception) {
    std::fprintf(stderr, "link_ceilings: %s\n", exception.what());
    return 1;
  }
}
