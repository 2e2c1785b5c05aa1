// SPDX-License-Identifier: Apache-2.0
// hep_latency: how long one low-latency operation takes. Results are compared with a reference. See
// --help.
#include <memory>

#include "bench/command_line.h"
#include "bench/run.h"
#include "latency_bench.h"

namespace {

using namespace bench;

constexpr const char* kDescription =
    "hep_latency: times single low-latency operations, and compares their results with a "
    "reference\n"
    "Lists of tokens, hidden, top-k, routing, type, scales, quantize and idle-ranks are crossed;\n"
    "each combination is measured with each number of SMs.";

constexpr const char* kDefinitions = R"(
A run is one operation; a dispatch updates the routing in the same call. On a GPU a run follows a
pause of some 20 us, is enqueued beforehand on all ranks, and lasts as long as on its slowest rank.
Batches alternate between two.
  launch         eager: called; graph: replayed as a captured graph; chain: one of 16 in a row in
                 such a graph, whose time is a sixteenth, without what begins and ends a run
  send, receive  the halves of an operation. A pause between them lets the data of small batches
                 arrive: their times are what other work does not hide
  p50, p99, max  microseconds of all runs, between CUDA events on the stream (host: by the clock)
  wrong          values of all ranks that differ from the reference; must be 0
A line is printed, and written to the file of --json, as soon as its case has been measured. The
exit status is 0 if every call succeeded and no value is wrong.
)";

void add_latency_options(CLI::App* app, Options* options) {
  add_options(app, options);
  app->add_option("-I,--idle-ranks", options->idle_ranks,
                  "how many ranks, the last ones, have no tokens (default: 0)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("LIST")
      ->check(CLI::Range(0, 1024).description(""));
  app->get_option("--tokens")
      ->description("tokens a rank (default: 1,8,16,32,64,128,256,512; host: 1,64)");
  app->get_option("--layouts")->description("flat, expert-major, expert-padded (default: all)");
  app->get_option("--sms")->description(
      "SMs of an operation, a communicator for each; 0: the library chooses (default: 32; host: "
      "0)");
  app->get_option("--iterations")->description("timed runs a case (default: 2000; host: 20)");
}

// Returns whether no value was wrong. Throws std::runtime_error if something failed.
bool run(harness::World& world, Options options) {
  const std::vector<hepLayout_t> layouts = {hepLayoutFlat, hepLayoutExpertMajor,
                                            hepLayoutExpertPadded};
  const Defaults defaults = world.backend() == hepBackendCuda
                                ? Defaults{{1, 8, 16, 32, 64, 128, 256, 512}, {32}, layouts, 2000}
                                : Defaults{{1, 64}, {0}, layouts, 20};
  resolve(defaults, world.backend(), world.num_ranks(), &options);
  std::unique_ptr<LatencyReport> report;
  prepare_root(world, [&] {
    report =
        std::make_unique<LatencyReport>(describe_run("hep_latency", world, options), options.json);
  });
  run_shapes(world, options, [&](const Job& job, int rank, Session& session) {
    LatencyReport* const reporting = rank == 0 ? report.get() : nullptr;
    LatencyBench(world, job, rank, session, reporting).run();
  });
  return report == nullptr || report->is_clean();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(kDescription);
  add_latency_options(&app, &options);
  app.footer(kDefinitions);
  return run_program(app, "hep_latency", options, argc, argv,
                     [&](harness::World& world) { return run(world, options); });
}
