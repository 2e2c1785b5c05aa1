// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <cstdio>

#include "bench/run.h"

namespace bench {
namespace {

constexpr const char* kColumns =
    "%-16s %-6s %-13s %-6s %-20s %6s %6s %5s %-10s %4s %4s %10s %10s %10s %6s\n";

template <typename... Cells>
void print_line(const Cells&... cells) {
  std::printf(kColumns, std::string(cells).c_str()...);
  std::fflush(stdout);
}

std::string number(int64_t value) { return std::to_string(value); }

std::string microseconds(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

void print(const Shape& shape, const LatencyCase& result) {
  print_line(result.operation, result.launch, name_of(kLayoutNames, result.layout),
             name_of(kMemoryNames, result.memory), shape.format.text(), number(shape.tokens),
             number(shape.hidden), number(shape.top_k), name_of(kRoutingNames, shape.routing),
             number(shape.idle_ranks), result.blocks == 0 ? "-" : number(result.blocks),
             microseconds(result.latency.p50_us), microseconds(result.latency.p99_us),
             microseconds(result.latency.max_us), result.wrong < 0 ? "-" : number(result.wrong));
}

Json describe(const Shape& shape, const LatencyCase& result) {
  Json line = {{"operation", result.operation},
               {"launch", result.launch},
               {"layout", name_of(kLayoutNames, result.layout)},
               {"memory", name_of(kMemoryNames, result.memory)}};
  line.update(describe_shape(shape));
  line["sms"] = result.blocks;
  line["p50_us"] = rounded(result.latency.p50_us);
  line["p99_us"] = rounded(result.latency.p99_us);
  line["max_us"] = rounded(result.latency.max_us);
  line["wrong"] = result.wrong;
  return line;
}

}  // namespace

LatencyReport::LatencyReport(const Json& run, const std::string& json_path)
    : file_(json_path, run) {
  print_run(run);
  print_line("operation", "launch", "layout", "memory", "format", "tokens", "hidden", "top-k",
             "routing", "idle", "SMs", "p50 us", "p99 us", "max us", "wrong");
}

void LatencyReport::add(const Job& job, const LatencyCase& result) {
  show_progress("");
  print(job.shape, result);
  file_.add(describe(job.shape, result));
  is_clean_ = is_clean_ && result.wrong <= 0;
}

}  // namespace bench
