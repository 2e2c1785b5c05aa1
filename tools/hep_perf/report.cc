// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <cstdio>

#include "bench/run.h"

namespace bench {
namespace {

constexpr const char* kColumns =
    "%-12s %-13s %-6s %-10s %-20s %6s %6s %5s %-10s %4s %10s %10s %8s %9s %11s %8s %6s\n";

template <typename... Cells>
void print_line(const Cells&... cells) {
  std::printf(kColumns, std::string(cells).c_str()...);
  std::fflush(stdout);
}

std::string decimal(double value) {
  if (value == 0) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string number(int64_t value) { return std::to_string(value); }

// Returns GB/s of flat rows and their scales.
double bandwidth(double rows, const Case& result, double us) {
  if (!result.moves_rows) return 0;
  return rows * static_cast<double>(result.bytes_per_row) / us * 1e-3;
}

double bandwidth(double rows, const Case& result) {
  return bandwidth(rows, result, result.timing.median_us);
}

}  // namespace

std::string Case::text() const {
  std::string text = name_of(kOperationNames, operation);
  for (const std::string& part : {layout, memory}) {
    if (part != "-") text += ", " + part;
  }
  if (sm_budget != 0) text += ", " + std::to_string(sm_budget) + " SMs";
  return text;
}

Report::Report(const Json& run, const std::string& json_path, const Ceilings& ceilings)
    : ceilings_(ceilings), file_(json_path, run) {
  print_run(run);
  print_ceilings();
  print_line("operation", "layout", "memory", "weights", "format", "tokens", "hidden", "top-k",
             "routing", "SMs", "median us", "min us", "host us", "alg GB/s", "remote GB/s",
             "ceiling", "wrong");
}

void Report::print_ceilings() const {
  if (!ceilings_.skipped.empty()) {
    std::printf("# ceilings: not measured: %s\n", ceilings_.skipped.c_str());
  }
  for (const Ceiling& ceiling : ceilings_.all) print_ceiling(ceiling);
}

double Report::ceiling(const Job& job, const Case& result) const {
  if (!result.moves_rows) return 0;
  if (result.memcpy_us > 0) return bandwidth(job.mean_rows(), result, result.memcpy_us);
  return ceilings_.best(result.sm_budget);
}

void Report::add(const Job& job, const Case& result) {
  show_progress("");
  print(job, result);
  write(job, result);
  is_clean_ = is_clean_ && result.wrong <= 0;
}

void Report::print(const Job& job, const Case& result) const {
  const Shape& shape = job.shape;
  const bool is_routing = result.operation == Operation::kRouting;
  print_line(name_of(kOperationNames, result.operation), result.layout, result.memory,
             result.weights, is_routing ? "-" : shape.format.text(), number(shape.tokens),
             number(shape.hidden), number(shape.top_k), name_of(kRoutingNames, shape.routing),
             result.sms == 0 ? "-" : number(result.sms), decimal(result.timing.median_us),
             decimal(result.timing.min_us), decimal(result.timing.host_us),
             decimal(bandwidth(job.mean_rows(), result)),
             decimal(bandwidth(job.mean_remote_rows(), result)), decimal(ceiling(job, result)),
             result.wrong < 0 ? "-" : number(result.wrong));
}

void Report::write(const Job& job, const Case& result) {
  Json line = {{"operation", name_of(kOperationNames, result.operation)},
               {"layout", result.layout},
               {"memory", result.memory},
               {"weights", result.weights}};
  line.update(describe_shape(job.shape));
  line["sm_budget"] = result.sm_budget;
  line["sms"] = result.sms;
  line["median_us"] = rounded(result.timing.median_us);
  line["min_us"] = rounded(result.timing.min_us);
  if (result.timing.host_us > 0) line["host_us"] = rounded(result.timing.host_us);
  if (result.moves_rows) {
    line["bytes_per_row"] = result.bytes_per_row;
    line["alg_gbps"] = rounded(bandwidth(job.mean_rows(), result));
    line["remote_gbps"] = rounded(bandwidth(job.mean_remote_rows(), result));
    const double gbps = ceiling(job, result);
    if (gbps > 0) line["ceiling_gbps"] = rounded(gbps);
  }
  line["wrong"] = result.wrong;
  file_.add(line);
}

}  // namespace bench
