// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>

#include "json.h"

namespace perf {
namespace {

std::string version_text() {
  int version = 0;
  if (hepGetVersion(&version) != hepSuccess) return "unknown";
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string utc_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

std::string fixed(double value, int decimals) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

const char* backend_name(hepBackend_t backend) {
  return backend == hepBackendCuda ? "cuda" : "host";
}

constexpr const char* kColumns =
    "%-9s %-12s %-6s %-10s %-4s %6s %6s %5s %7s %5s %4s %10s %10s %9s %11s %12s %8s\n";

template <typename... Cells>
void print_line(const Cells&... cells) {
  std::printf(kColumns, cells.c_str()...);
}

std::string text(const char* cell) { return cell; }
std::string text(int64_t number) { return std::to_string(number); }

}  // namespace

Report::Report(const Job& job, int num_processes, const GpuInfo& gpus, const Ceilings& ceilings)
    : job_(job),
      num_processes_(num_processes),
      gpus_(gpus),
      ceilings_(ceilings),
      mean_rows_(job.mean_rows()),
      mean_remote_rows_(job.mean_remote_rows()) {}

double Report::bandwidth(double rows, const Row& row) const {
  return rows * static_cast<double>(job_.row_bytes()) / row.timing.median_us * 1e-3;
}

bool Report::clean() const {
  const auto is_wrong = [](const Row& row) { return row.wrong > 0; };
  return !ceilings_.failed && std::none_of(rows_.begin(), rows_.end(), is_wrong);
}

void Report::print_header() const {
  std::printf("# libhybridep %s, backend %s, %d rank%s in %d process%s", version_text().c_str(),
              backend_name(job_.backend), job_.num_ranks, job_.num_ranks == 1 ? "" : "s",
              num_processes_, num_processes_ == 1 ? "" : "es");
  if (job_.backend == hepBackendCuda) {
    std::printf(", %d x %s, driver %s, CUDA %s", gpus_.count, gpus_.name.c_str(),
                gpus_.driver.c_str(), gpus_.cuda.c_str());
  }
  std::printf("\n# CPU %s, %s\n", cpu_name().c_str(), utc_time().c_str());
  std::printf("# routing %s, alignment %d, seed %llu, %d iterations after %d\n",
              routing_name(job_.options.routing), job_.options.alignment,
              static_cast<unsigned long long>(job_.options.seed), job_.options.iterations,
              job_.options.warmup);
  if (!ceilings_.skipped.empty()) {
    std::printf("# ceilings: not measured: %s\n", ceilings_.skipped.c_str());
  } else {
    std::printf("# ceilings, GB/s a GPU, %d GPU%s:\n", ceilings_.gpus,
                ceilings_.gpus == 1 ? ", local" : "s at once");
  }
  for (const Ceiling& ceiling : ceilings_.all) {
    std::printf("#   %-20s %s %8.1f\n", ceiling_name(ceiling.kind),
                ceiling.sms == 0 ? "       " : (fixed(ceiling.sms, 0) + " SMs ").c_str(),
                ceiling.gbps);
  }
  const char* const link = job_.backend == hepBackendHost ? "remote GB/s" : "NVLink GB/s";
  print_line(text("operation"), text("layout"), text("memory"), text("weights"), text("type"),
             text("tokens"), text("hidden"), text("top-k"), text("experts"), text("ranks"),
             text("SMs"), text("median us"), text("min us"), text("alg GB/s"), text(link),
             text("ceiling GB/s"), text("wrong"));
  std::fflush(stdout);
}

void Report::add(const Row& row) {
  rows_.push_back(row);
  progress("");
  const Options& options = job_.options;
  const double ceiling = row.moves_rows ? ceilings_.best(row.sm_budget) : 0;
  const auto speed = [&](double rows) {
    return row.moves_rows ? fixed(bandwidth(rows, row), 1) : "-";
  };
  print_line(row.operation, row.layout, row.memory, row.weights, text(kTypeName),
             text(options.tokens), text(options.hidden), text(options.top_k), text(options.experts),
             text(job_.num_ranks), row.sms == 0 ? text("-") : text(row.sms),
             fixed(row.timing.median_us, 1), fixed(row.timing.min_us, 1), speed(mean_rows_),
             speed(mean_remote_rows_), ceiling == 0 ? text("-") : fixed(ceiling, 1),
             row.wrong < 0 ? text("-") : text(row.wrong));
  std::fflush(stdout);
}

void Report::progress(const std::string& text) const {
  if (!isatty(STDERR_FILENO)) return;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
}

std::string Report::json() const {
  const Options& options = job_.options;
  JsonWriter json;
  json.open('{');
  json.open("machine", '{');
  json.member("gpu", gpus_.name);
  json.member("gpus", gpus_.count);
  json.member("driver", gpus_.driver);
  json.member("cuda", gpus_.cuda);
  json.member("cpu", cpu_name());
  json.close('}');
  json.member("date", utc_time());
  json.member("version", version_text());
  json.member("commit", options.commit);

  json.open("config", '{');
  json.member("backend", backend_name(job_.backend));
  json.member("ranks", job_.num_ranks);
  json.member("processes", num_processes_);
  json.member("type", kTypeName);
  json.member("tokens", options.tokens);
  json.member("hidden", options.hidden);
  json.member("top_k", options.top_k);
  json.member("experts", options.experts);
  json.member("alignment", options.alignment);
  json.member("routing", routing_name(options.routing));
  json.member("seed", options.seed);
  json.member("iterations", options.iterations);
  json.member("warmup", options.warmup);
  json.member("flat_rows_per_rank", mean_rows_);
  json.member("remote_flat_rows_per_rank", mean_remote_rows_);
  json.close('}');

  json.open("definitions", '{');
  json.member("median_us",
              "time of one API call on a cached routing, an iteration counting as long as its "
              "slowest rank; min_us likewise");
  json.member("mean_rank_us", "median, an iteration counting as long as the mean of its ranks");
  json.member("alg_gbps",
              "bytes of the flat rows that a rank receives, its own included, mean of the ranks, "
              "over the median; in both layouts and both directions");
  json.member("link_gbps", "the same without the rank's own rows: what crosses NVLink");
  json.member("ceiling_gbps",
              "the faster of TMA load from and TMA store to peers with sm_budget SMs");
  json.member("wrong", "values of all ranks that differ from the reference; -1: not checked");
  json.close('}');

  json.open("ceilings", '{');
  json.member("gpus", ceilings_.gpus);
  json.member("skipped", ceilings_.skipped);
  json.open("rows", '[');
  for (const Ceiling& ceiling : ceilings_.all) {
    json.open('{');
    json.member("name", ceiling_name(ceiling.kind));
    json.member("sms", ceiling.sms);
    json.member("gbps", ceiling.gbps);
    json.close('}');
  }
  json.close(']');
  json.close('}');

  json.open("rows", '[');
  for (const Row& row : rows_) {
    json.open('{');
    json.member("operation", row.operation);
    json.member("layout", row.layout);
    json.member("memory", row.memory);
    json.member("weights", row.weights);
    json.member("sm_budget", row.sm_budget);
    json.member("sms", row.sms);
    json.member("median_us", row.timing.median_us);
    json.member("min_us", row.timing.min_us);
    json.member("mean_rank_us", row.timing.mean_rank_us);
    if (row.moves_rows) {
      json.member("alg_gbps", bandwidth(mean_rows_, row));
      json.member("link_gbps", bandwidth(mean_remote_rows_, row));
      json.member("ceiling_gbps", ceilings_.best(row.sm_budget));
    }
    json.member("wrong", row.wrong);
    json.close('}');
  }
  json.close(']');
  json.close('}');
  return json.text() + "\n";
}

}  // namespace perf
