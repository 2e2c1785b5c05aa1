// SPDX-License-Identifier: Apache-2.0
// hep_perf: how long routing updates, dispatches and combines take, and how many bytes they move a
// second. Results are compared with a reference. See --help.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/command_line.h"
#include "bench/run.h"
#include "operation_bench.h"

namespace {

using namespace bench;

constexpr const char* kDescription =
    "hep_perf: times routing, dispatch and combine, and compares their results with a reference.\n"
    "Lists of tokens, hidden, top-k, routing, type, scales and quantize are crossed; each\n"
    "combination is measured with each SM budget.";

constexpr const char* kDefinitions = R"(
Routings, all with distinct experts in a token:
  uniform     every expert alike
  hot-rank    step of the selections, as far as they can, go to rank 0
  hot-expert  every token selects expert 0
  zipf        the p-th most wanted expert is wanted in proportion to 1 / p

A case is one API call on a cached routing. Dispatch carries weights. Combine is a plain sum in the
flat layout and multiplies by the dispatched weights in the others. A layer is a routing update, a
dispatch and a combine of what it gave, alternating between two batches; layer-graph is the same as
a captured CUDA graph.
  format       type of the rows, + that of the scales beside them; x > rows where it is quantised
  median, min  microseconds between CUDA events on the stream (host: by the clock); the time of an
               iteration is that of its slowest rank
  host us      microseconds that the host takes to enqueue the call, median of all ranks
  alg GB/s     bytes of the flat rows that a rank receives, and in dispatch of their scales, its own
               included (mean of the ranks), over the median; the same in all layouts and both
               directions, so that figures compare
  remote GB/s  the same without the rank's own rows: what crosses NVLink
  ceiling      GB/s of the faster of TMA load from and TMA store to peers with the SM budget of the
               case, all GPUs at once, measured in the same run; beside remote GB/s. Host: of one
               memcpy of the bytes of alg GB/s by all ranks at once, measured after the case
  wrong        values of all ranks that differ from the reference; must be 0
A line is printed, and written to the file of --json, as soon as its case has been measured. The
exit status is 0 if every call succeeded and no value is wrong.
)";

void add_perf_options(CLI::App* app, PerfOptions* options) {
  add_options(app, options);
  add_words(app, "-o,--operations", &options->operations, kOperationNames,
            "routing, dispatch, combine, layer, layer-graph (default: all; host, and where ranks "
            "share a GPU: without the last)");
  app->add_flag_callback(
      "-x,--no-ceilings", [=] { options->ceilings = false; },
      "do not measure what the links, or on the host the memory, give");
  app->get_option("--tokens")->description("tokens a rank (default: 4096; host: 256)");
  app->get_option("--layouts")
      ->description("flat, expert-major, expert-padded (default: the first two)");
  app->get_option("--sms")->description(
      "SM budgets, a communicator for each; 0: the library's (default: 8,16,24; host: 0)");
  app->add_flag("-E,--exact", options->exact_sms,
                "dispatch and combine take the whole SM budget, as in a sweep");
  app->get_option("--iterations")->description("timed calls a case (default: 30; host: 20)");
}

void resolve_perf(const harness::World& world, PerfOptions* options) {
  const std::vector<hepLayout_t> layouts = {hepLayoutFlat, hepLayoutExpertMajor};
  const bool cuda = world.backend() == hepBackendCuda;
  const Defaults defaults =
      cuda ? Defaults{{4096}, {8, 16, 24}, layouts, 30} : Defaults{{256}, {0}, layouts, 20};
  resolve(defaults, world.backend(), world.num_ranks(), options);
  const bool can_capture = cuda && !world.shares_devices();
  if (options->operations.empty()) {
    options->operations = {Operation::kRouting, Operation::kDispatch, Operation::kCombine,
                           Operation::kLayer};
    if (can_capture) options->operations.push_back(Operation::kLayerGraph);
  }
  if (!can_capture && options->measures(Operation::kLayerGraph)) {
    throw std::runtime_error(
        "--operations layer-graph needs the cuda backend, with a GPU for each rank");
  }
}

// Measures the ceilings in the root process, for all GPUs. Only a process that sees them all can do
// so.
Ceilings find_ceilings(const harness::World& world, const PerfOptions& options) {
  Ceilings ceilings;
  const int seen = harness::World::num_devices();
  if (!options.ceilings) {
    ceilings.skipped = "--no-ceilings";
  } else if (world.backend() != hepBackendCuda) {
    // Each case measures its own.
  } else if (seen < world.num_gpus()) {
    ceilings.skipped = "this process sees " + std::to_string(seen) + " of " +
                       std::to_string(world.num_gpus()) + " GPUs";
  } else {
    std::vector<int> sms = options.sms;
    sms.erase(std::remove(sms.begin(), sms.end(), 0), sms.end());  // has no ceiling of its own
    ceilings = measure_ceilings(world.num_gpus(), sms);
  }
  return ceilings;
}

// Only the root process has this.
struct Root {
  Ceilings ceilings;
  std::unique_ptr<Report> report;

  void prepare(const harness::World& world, const PerfOptions& options) {
    // This comes first, because it lets the GPUs access each other for a while.
    ceilings = find_ceilings(world, options);
    report =
        std::make_unique<Report>(describe_run("hep_perf", world, options), options.json, ceilings);
  }
};

// Returns whether no value was wrong. Throws std::runtime_error if something failed.
bool run(harness::World& world, PerfOptions options) {
  resolve_perf(world, &options);
  Root root;
  prepare_root(world, [&] { root.prepare(world, options); });
  run_shapes(world, options, [&](const Job& job, int rank, Session& session) {
    Report* const reporting = rank == 0 ? root.report.get() : nullptr;
    OperationBench(world, options, job, rank, session, reporting).run();
  });
  return root.report == nullptr || root.report->is_clean();
}

}  // namespace

int main(int argc, char** argv) {
  PerfOptions options;
  CLI::App app(kDescription);
  add_perf_options(&app, &options);
  app.footer(kDefinitions);
  return run_program(app, "hep_perf", options, argc, argv,
                     [&](harness::World& world) { return run(world, options); });
}
