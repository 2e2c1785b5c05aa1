// SPDX-License-Identifier: Apache-2.0
#include "results.h"

#include <cmath>
#include <ctime>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "commit.h"
#include "gpu.h"

namespace bench {
namespace {

// This number counts up when a member changes its meaning or goes.
constexpr int kSchema = 1;

std::string version() {
  return std::to_string(HEP_VERSION_MAJOR) + "." + std::to_string(HEP_VERSION_MINOR) + "." +
         std::to_string(HEP_VERSION_PATCH);
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

}  // namespace

Json describe_machine(const char* program, const std::string& commit, hepBackend_t backend) {
  Json run;
  run["schema"] = kSchema;
  run["program"] = program;
  run["version"] = version();
  run["commit"] = commit.empty() ? HEP_COMMIT : commit;
  run["backend"] = backend == hepBackendCuda ? "cuda" : "host";
  if (backend == hepBackendCuda) {
    const GpuInfo gpu = gpu_info();
    run["gpu"] = gpu.name;
    run["driver"] = gpu.driver;
    run["cuda"] = gpu.cuda;
  }
  run["cpu"] = cpu_name();
  return run;
}

Json describe_run(const char* program, const harness::World& world, const Options& options) {
  Json run = describe_machine(program, options.commit, world.backend());
  run["ranks"] = world.num_ranks();
  run["processes"] = world.num_processes();
  run["gpus"] = world.num_gpus();
  run["experts"] = options.experts;
  run["alignment"] = options.alignment;
  run["seed"] = options.seed;
  run["iterations"] = options.iterations;
  run["warmup"] = options.warmup;
  return run;
}

Json describe_shape(const Shape& shape) {
  return {{"tokens", shape.tokens},
          {"hidden", shape.hidden},
          {"top_k", shape.top_k},
          {"routing", name_of(kRoutingNames, shape.routing)},
          {"type", name_of(kTypeNames, shape.format.type)},
          {"scales", name_of(kScalesNames, shape.format.scales)},
          {"quantize", name_of(kQuantizationNames, shape.format.quantize)},
          {"idle_ranks", shape.idle_ranks}};
}

double rounded(double value) { return std::round(value * 1000) / 1000; }

void print_run(const Json& run) {
  const char* separator = "# ";
  for (const auto& [key, value] : run.items()) {
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    std::printf("%s%s %s", separator, key.c_str(), text.c_str());
    separator = ", ";
  }
  std::printf("\n");
  const int ranks = run.value("ranks", 0), gpus = run.value("gpus", 0);
  if (gpus == 0 || ranks <= gpus) return;
  std::printf(
      "# %d ranks share %d GPU%s: no rank enqueues an operation before all have enqueued the last "
      "one, so that times include delays of the host\n",
      ranks, gpus, gpus == 1 ? "" : "s");
}

ResultsFile::ResultsFile(const std::string& path, Json run) : path_(path), run_(std::move(run)) {
  if (path_.empty()) return;
  file_ = std::fopen(path_.c_str(), "a");
  if (file_ == nullptr) throw std::runtime_error("cannot open " + path_ + " to append");
}

ResultsFile::~ResultsFile() {
  if (file_ != nullptr) std::fclose(file_);
}

void ResultsFile::add(const Json& result) {
  if (file_ == nullptr) return;
  Json line = run_;
  line["date"] = utc_time();
  line.update(result);
  const std::string text = line.dump() + "\n";
  if (std::fputs(text.c_str(), file_) < 0 || std::fflush(file_) != 0) {
    throw std::runtime_error("cannot write " + path_);
  }
}

}  // namespace bench
