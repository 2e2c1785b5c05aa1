// SPDX-License-Identifier: Apache-2.0
// Prints what this build is, what it can use here, its settings, and what a communicator costs.
#include <hybridep.h>
#include <strings.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "backend/backend.h"
#include "backend/cuda/plan.h"
#include "config/config.h"
#include "config/lanes.h"
#include "config/settings.h"
#include "expectation.h"
#include "memory/choose_kind.h"
#include "protocol/location.h"
#include "protocol/shape.h"

#if defined(HEP_HAVE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace {

// This is enough for a process with as many ranks as a communicator may have.
constexpr rlim_t kEnoughFiles = 1024;

// What a signal to a peer takes of a pipeline (2 H200s).
constexpr double kSignalUs = 1.2;

constexpr const char* kUsage =
    "usage: hep_info                          version, backends, devices, memory that can be\n"
    "                                         shared here, limits\n"
    "       hep_info --settings [--markdown]  the environment variables, as text or as a table\n"
    "       hep_info [--ranks N] [--tokens N] [--hidden N] [--experts N] [--top-k N] [--heap N]\n"
    "                [--lanes N] [--low-latency-tokens N]\n"
    "                                         memory that a communicator of this shape takes\n"
    "       hep_info --model FAMILY [--sms N] ...\n"
    "                                         what the plan expects of this shape on a family of\n"
    "                                         devices, h200 or blackwell: with N SMs (16), and "
    "with\n"
    "                                         as many as it chooses\n"
    "       hep_info --signals                what a rank signals in a combine, as a table\n"
    "\n"
    "Shapes not given: 8 ranks, 4096 tokens a rank, hidden 7168, 256 experts, top-k 8, no heap, "
    "one\n"
    "lane, no low latency.\n";

struct Options {
  bool help = false;
  bool settings = false;
  bool signals = false;
  bool markdown = false;
  bool workspace = false;
  int64_t ranks = 8, tokens = 4096, hidden = 7168, experts = 256, top_k = 8, heap = 0;
  int64_t lanes = 1, low_latency_tokens = 0;
  const hep::Profile* model = nullptr;  // what is expected of it is asked for
  int64_t sms = 16;
};

const hep::Profile* find_family(const char* name) {
  for (const hep::Profile* profile : {&hep::kH200, &hep::kBlackwell})
    if (strcasecmp(name, profile->family) == 0) return profile;
  std::fprintf(stderr, "hep_info: --model takes h200 or blackwell\n");
  return nullptr;
}

bool parse_number(const char* text, int64_t max, int64_t* value) {
  char* end = nullptr;
  errno = 0;
  *value = std::strtoll(text, &end, 10);
  return errno == 0 && end != text && *end == '\0' && *value >= 0 && *value <= max;
}

bool parse_options(int argc, char** argv, Options* options) {
  const struct {
    const char* name;
    int64_t* value;
    int64_t max;
  } numbers[] = {
      {"--ranks", &options->ranks, INT_MAX},
      {"--tokens", &options->tokens, INT_MAX},
      {"--hidden", &options->hidden, INT_MAX},
      {"--experts", &options->experts, INT_MAX},
      {"--top-k", &options->top_k, INT_MAX},
      {"--heap", &options->heap, INT64_MAX},
      {"--lanes", &options->lanes, INT_MAX},
      {"--low-latency-tokens", &options->low_latency_tokens, INT_MAX},
      {"--sms", &options->sms, hep::kMaxBlocks},
  };
  const struct {
    const char* name;
    bool* value;
  } flags[] = {{"--help", &options->help},
               {"--settings", &options->settings},
               {"--signals", &options->signals},
               {"--markdown", &options->markdown}};
  for (int i = 1; i < argc; ++i) {
    bool known = false;
    if (std::strcmp(argv[i], "--model") == 0) {
      options->model = find_family(i + 1 < argc ? argv[++i] : "");
      if (options->model == nullptr) return false;
      continue;
    }
    for (const auto& flag : flags)
      if (std::strcmp(argv[i], flag.name) == 0) known = *flag.value = true;
    for (const auto& number : numbers) {
      if (std::strcmp(argv[i], number.name) != 0) continue;
      if (++i == argc || !parse_number(argv[i], number.max, number.value)) {
        std::fprintf(stderr, "hep_info: %s takes a number\n", number.name);
        return false;
      }
      known = options->workspace = true;
      break;
    }
    if (!known) {
      std::fprintf(stderr, "hep_info: unknown option %s\n%s", argv[i], kUsage);
      return false;
    }
  }
  return true;
}

void print_settings() {
  for (const hep::Setting& setting : hep::settings_table()) {
    const std::string value = hep::setting_text(setting.name);
    std::printf("%s%s%s\n", setting.name, value.empty() ? "" : "=", value.c_str());
    std::printf("    %s\n", setting.documentation);
    std::printf("    %s; default: %s", hep::setting_range(setting).c_str(),
                hep::setting_default(setting).c_str());
    if (setting.field) std::printf("; overrides the config's %s", setting.field->name);
    std::printf("\n");
  }
}

// Prints the settings table of GUIDE.md.
void print_settings_as_markdown() {
  std::printf("| variable | config field | values | default | meaning |\n|---|---|---|---|---|\n");
  for (const hep::Setting& setting : hep::settings_table()) {
    std::printf("| `%s` | %s | %s | %s | %s |\n", setting.name,
                setting.field ? ("`" + std::string(setting.field->name) + "`").c_str() : "",
                hep::setting_range(setting).c_str(), hep::setting_default(setting).c_str(),
                setting.documentation);
  }
}

#if defined(HEP_HAVE_CUDA)
void print_devices() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    std::printf("devices      none usable: %s\n", cudaGetErrorString(error));
    return;
  }
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    std::printf("device %-5d %s, compute capability %d.%d, %d SMs%s\n", device, properties.name,
                properties.major, properties.minor, properties.multiProcessorCount,
                properties.major < 9 ? " (too old: 9.0 is needed)" : "");
  }
}
constexpr const char* kBackends = "cuda, host";
#else
void print_devices() {}
constexpr const char* kBackends = "host (built without CUDA)";
#endif

// Prints what this machine must grant so that its ranks can share memory.
void print_sharing() {
  const struct {
    hepBackend_t backend;
    hep::MemoryKind kind;
  } kinds[] = {
    {hepBackendHost, hep::MemoryKind::host_descriptor},
#if defined(HEP_HAVE_CUDA)
    {hepBackendCuda, hep::MemoryKind::cuda_descriptor},
    {hepBackendCuda, hep::MemoryKind::cuda_ipc},
    {hepBackendCuda, hep::MemoryKind::cuda_fabric},
#endif
  };
  for (const auto& [backend, kind] : kinds) {
    int device = -1;
    if (backend == hepBackendCuda && !hep::find_cuda_device(&device).ok()) continue;
    uint32_t working = 0;
    const hep::Status probed = hep::probe_memory_kinds(backend, device, &working);
    const bool works = working & hep::memory_kind_bit(kind);
    std::printf("memory       %s %s\n", hep::memory_kind_name(kind),
                !probed.ok() ? probed.message().c_str()
                : works      ? "works"
                             : "does not work (HEP_LOG=debug tells why)");
  }
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0)
    std::printf("open files   %" PRIu64 " at most%s\n", static_cast<uint64_t>(files.rlim_cur),
                files.rlim_cur < kEnoughFiles ? " (low: raise it with ulimit -n)" : "");
}

void print_summary() {
  int version = 0;
  hepGetVersion(&version);
  std::printf("version      %d.%d.%d\n", version / 10000, version / 100 % 100, version % 100);
  std::printf("backends     %s\n", kBackends);
  print_devices();
  print_sharing();
  std::printf("ranks        1 to %d\n", hep::kMaxRanks);
  std::printf("experts      to %d, a multiple of the ranks\n", hep::kMaxExperts);
  std::printf("tokens       to %d a rank and batch\n", hep::kMaxTokens);
  std::printf("top-k        to %d\n", hep::kMaxTopK);
  std::printf("row          a multiple of %" PRId64 " bytes, to %" PRId64 "\n",
              hep::kRowGranularity, hep::kMaxRowBytes);
}

// False if it breaks a rule.
bool resolve(const Options& options, hepConfig_t* resolved) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.max_tokens = static_cast<int32_t>(options.tokens);
  config.hidden = static_cast<int32_t>(options.hidden);
  config.num_experts = static_cast<int32_t>(options.experts);
  config.max_top_k = static_cast<int32_t>(options.top_k);
  config.heap_bytes = options.heap;
  config.lanes = static_cast<int32_t>(options.lanes);
  config.low_latency_tokens = static_cast<int32_t>(options.low_latency_tokens);
  const hep::Status status =
      hep::resolve_config(&config, static_cast<int>(options.ranks), resolved);
  if (!status.ok()) std::fprintf(stderr, "hep_info: %s\n", status.message().c_str());
  return status.ok();
}

int print_model(const Options& options) {
  hepConfig_t resolved;
  if (!resolve(options, &resolved)) return 1;
  const int sms = std::max(static_cast<int>(options.sms), 1);
  hep::print_expectation(resolved, static_cast<int>(options.ranks), *options.model, sms);
  return 0;
}

int print_workspace(const Options& options) {
  hepConfig_t resolved;
  if (!resolve(options, &resolved)) return 1;
  const int ranks = static_cast<int>(options.ranks);
  const hepWorkspace_t workspace = hep::make_workspace(resolved, ranks);
  const struct {
    const char* name;
    uint64_t bytes;
  } items[] = {{"window", workspace.total_bytes},
               {"  tokens", workspace.token_bytes},
               {"  partials", workspace.partial_bytes},
               {"  records", workspace.record_bytes},
               {"  signals", workspace.signal_bytes},
               {"  heap", workspace.heap_bytes},
               {"  low latency", workspace.low_latency_bytes},
               {"  network", workspace.network_bytes},
               {"each routing", workspace.routing_bytes},
               {"  low latency", workspace.low_latency_routing_bytes},
               {"scratch", workspace.scratch_bytes}};
  for (const auto& item : items)
    std::printf("%-14s %16" PRIu64 " bytes %12.2f MB\n", item.name, item.bytes,
                static_cast<double>(item.bytes) / 1e6);
  const int32_t blocks = hep::blocks_of_all(hep::make_lanes(resolved, ranks), hep::Gpu{});
  std::printf("%-14s %16" PRId32 " SMs if operations of all lanes run at the same time\n", "blocks",
              blocks);
  return 0;
}

// Tokens of a top-8, uniform routing that select one rank.
double selecting_share(int ranks) { return 1 - std::pow(1 - 1.0 / ranks, 8); }

// A line of the table of README.md: an expert-major combine of BF16 rows of 7168 elements.
void print_signals_of(int ranks, hepMode_t mode, int tokens) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.max_tokens = 4096;
  config.hidden = 7168;
  config.num_experts = 4 * ranks;
  config.max_top_k = 8;
  config.low_latency_tokens = 128;
  hepConfig_t resolved;
  if (!hep::resolve_config(&config, ranks, &resolved).ok()) return;
  for (const hep::Lane& lane : hep::make_lanes(resolved, ranks)) {
    if (lane.mode != mode || lane.number != 0) continue;
    hep::CombineArgs args{};
    args.context.window_layout = lane.window_layout;
    args.num_tokens = tokens;
    args.row_bytes = args.partial_row_bytes = 2 * resolved.hidden;
    args.call.layout = hepLayoutExpertMajor;
    args.outputs.location = hep::kNotInWindow;
    hep::plan_combine(hep::make_plan(lane, {&hep::kH200, hep::kMaxBlocks}), &args);
    const hep::CombineSignals signals = hep::count_signals(args);
    const double rows = tokens * (ranks - 1) * selecting_share(ranks);
    std::printf("| %s | %d | %d | %d | %.0f | %.1f | %d | %d | %.1f |\n",
                mode == hepModeThroughput ? "throughput" : "low latency", tokens, ranks,
                hep::chunk_tokens(tokens, ranks), rows, rows * args.row_bytes / 1e6, signals.words,
                signals.of_pipeline, signals.of_pipeline * kSignalUs);
  }
}

// The table of signals in README.md is this output.
void print_signals() {
  std::printf(
      "| mode | tokens | ranks | tokens of a chunk | rows sent | MB sent "
      "| words signalled, words polled | signals of a pipeline | us of a pipeline |\n"
      "|---|---|---|---|---|---|---|---|---|\n");
  for (const int ranks : {2, 8, 64, 72}) print_signals_of(ranks, hepModeThroughput, 4096);
  for (const int ranks : {2, 8, 64, 72}) print_signals_of(ranks, hepModeLowLatency, 128);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse_options(argc, argv, &options)) return 2;
  if (options.help)
    std::fputs(kUsage, stdout);
  else if (options.settings && options.markdown)
    print_settings_as_markdown();
  else if (options.settings)
    print_settings();
  else if (options.model != nullptr)
    return print_model(options);
  else if (options.signals)
    print_signals();
  else if (options.workspace)
    return print_workspace(options);
  else
    print_summary();
  return 0;
}
