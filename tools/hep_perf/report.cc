// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <tuple>

#include "machine.h"
#include "plan.h"

namespace perf {
namespace {

std::string fixed(double value, int decimals) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string or_dash(double value, int decimals) {
  return value == 0 ? "-" : fixed(value, decimals);
}

constexpr const char* kColumns =
    "%-15s %-12s %-6s %-10s %-20s %6s %6s %5s %-10s %4s %10s %10s %9s %7s %9s %11s %8s %6s%s\n";

template <typename... Cells>
void print_line(const Cells&... cells) {
  std::printf(kColumns, cells.c_str()...);
}

std::string text(const char* cell) { return cell; }
std::string text(int64_t number) { return std::to_string(number); }

}  // namespace

std::string Case::text() const {
  std::string text = operation;
  for (const std::string& part : {layout, memory}) {
    if (part != "-") text += ", " + part;
  }
  if (sm_budget != 0) text += ", " + std::to_string(sm_budget) + " SMs";
  return text;
}

bool Row::same_case(const Row& other) const {
  const auto key = [](const Row& row) {
    return std::tie(row.operation, row.layout, row.memory, row.weights, row.sm_budget,
                    row.shape.tokens, row.shape.hidden, row.shape.top_k, row.shape.routing);
  };
  return key(*this) == key(other) && shape.format == other.shape.format;
}

bool Report::clean() const {
  const auto all_right = [](const auto& rows) {
    return std::none_of(rows.begin(), rows.end(), [](const auto& row) { return row.wrong > 0; });
  };
  return !setting_.ceilings.failed && all_right(rows_) && all_right(latency_rows_) &&
         all_right(overlap_rows_);
}

void Report::print_header() const {
  const Options& options = setting_.options;
  const Ceilings& ceilings = setting_.ceilings;
  const int ranks = setting_.num_ranks, processes = setting_.num_processes;
  std::printf("# libhybridep %s, backend %s, %d rank%s in %d process%s", version_text().c_str(),
              backend_name(setting_.backend), ranks, ranks == 1 ? "" : "s", processes,
              processes == 1 ? "" : "es");
  if (setting_.backend == hepBackendCuda) {
    const GpuInfo& gpus = setting_.gpus;
    std::printf(", %d x %s, driver %s, CUDA %s", gpus.count, gpus.name.c_str(), gpus.driver.c_str(),
                gpus.cuda.c_str());
  }
  std::printf("\n# CPU %s, %s\n", cpu_name().c_str(), utc_time().c_str());
  std::printf("# %d experts, alignment %d, seed %llu, %d iterations after %d\n", options.experts,
              options.alignment, static_cast<unsigned long long>(options.seed), options.iterations,
              options.warmup);
  if (setting_.launch_us > 0) {
    std::printf("# enqueuing an empty kernel: %.1f us on the host\n", setting_.launch_us);
  }
  if (!setting_.kernel_time.empty()) {
    std::printf("# kernel us: not measured: %s\n", setting_.kernel_time.c_str());
  }
  if (!setting_.nccl.empty()) std::printf("# baselines: %s\n", setting_.nccl.c_str());
  if (!ceilings.skipped.empty()) {
    std::printf("# ceilings: not measured: %s\n", ceilings.skipped.c_str());
  } else {
    std::printf("# ceilings, GB/s a GPU, %d GPU%s:\n", ceilings.gpus,
                ceilings.gpus == 1 ? ", local" : "s at once");
  }
  for (const Ceiling& ceiling : ceilings.all) {
    std::printf("#   %-20s %s %8.1f\n", ceiling_name(ceiling.kind),
                ceiling.sms == 0 ? "       " : (fixed(ceiling.sms, 0) + " SMs ").c_str(),
                ceiling.gbps);
  }
  if (options.low_latency) {
    print_latency_header();
    std::fflush(stdout);
    return;
  }
  const char* const link = setting_.backend == hepBackendHost ? "remote GB/s" : "NVLink GB/s";
  print_line(text("operation"), text("layout"), text("memory"), text("weights"), text("format"),
             text("tokens"), text("hidden"), text("top-k"), text("routing"), text("SMs"),
             text("median us"), text("min us"), text("kernel us"), text("host us"),
             text("alg GB/s"), text(link), text("ceiling"), text("wrong"),
             text(options.vary.empty() ? "" : "  tuning"));
  std::fflush(stdout);
}

void Report::begin(const Job& job) {
  next_.shape = job.shape;
  next_.rows = job.mean_rows();
  next_.remote_rows = job.mean_remote_rows();
}

void Report::add(const Case& result) {
  Row row = next_;
  static_cast<Case&>(row) = result;
  rows_.push_back(row);
  progress("");
  const auto speed = [&](double rows) {
    return row.moves_rows ? fixed(bandwidth(rows, row), 1) : "-";
  };
  print_line(
      row.operation, row.layout, row.memory, row.weights,
      row.operation == operation_name(Operation::kRouting) ? text("-") : row.shape.format.text(),
      text(row.shape.tokens), text(row.shape.hidden), text(row.shape.top_k),
      text(routing_name(row.shape.routing)), row.sms == 0 ? text("-") : text(row.sms),
      fixed(row.timing.median_us, 1), fixed(row.timing.min_us, 1), or_dash(row.timing.kernel_us, 1),
      or_dash(row.timing.host_us, 1), speed(row.rows), speed(row.remote_rows),
      or_dash(row.moves_rows ? ceiling(row) : 0, 1), row.wrong < 0 ? text("-") : text(row.wrong),
      setting_.options.vary.empty() ? text("") : "  " + row.tuning.text());
  std::fflush(stdout);
}

void Report::note(const std::string& text) {
  if (std::find(notes_.begin(), notes_.end(), text) != notes_.end()) return;
  notes_.push_back(text);
  progress("");
  std::printf("# %s\n", text.c_str());
  std::fflush(stdout);
}

void Report::finish(double launch_us_at_end) {
  setting_.launch_us_at_end = launch_us_at_end;
  if (launch_us_at_end > 0) {
    std::printf("# enqueuing an empty kernel, at the end: %.1f us on the host\n", launch_us_at_end);
  }
  print_plan();
  print_overlap();
}

void Report::print_plan() const {
  for (const PlanCheck& check : check_plan(rows_)) {
    const Row& chosen = *check.chosen;
    std::printf(
        "# best of %s, %d tokens, hidden %d, top-%d, %s, %s: %s, %.1f us; default %.1f us, "
        "%.1f %% behind\n",
        chosen.text().c_str(), chosen.shape.tokens, chosen.shape.hidden, chosen.shape.top_k,
        routing_name(chosen.shape.routing), chosen.shape.format.text().c_str(),
        check.best->tuning.text().c_str(), check.best->timing.median_us, chosen.timing.median_us,
        check.behind_percent());
  }
}

void Report::progress(const std::string& text) const {
  if (!isatty(STDERR_FILENO)) return;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
}

}  // namespace perf
