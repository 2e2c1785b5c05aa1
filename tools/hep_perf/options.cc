// SPDX-License-Identifier: Apache-2.0
// One table of options: the parser and --help both read it.
#include "options.h"

#include <getopt.h>

#include <functional>
#include <sstream>

#include "parse.h"

namespace perf {
namespace {

using Setter = std::function<bool(Options*, const char*)>;

struct Option {
  char short_name;
  const char* long_name;
  const char* argument;  // NULL: a switch
  const char* help;
  Setter set;
};

Setter number(int Options::*field, int low) {
  return
      [=](Options* options, const char* text) { return parse_int(text, low, &(options->*field)); };
}

Setter text(std::string Options::*field) {
  return [=](Options* options, const char* value) {
    options->*field = value;
    return true;
  };
}

Setter flag(bool Options::*field, bool value) {
  return [=](Options* options, const char*) {
    options->*field = value;
    return true;
  };
}

constexpr Name<hepBackend_t> kBackends[] = {
    {"auto", hepBackendAuto}, {"cuda", hepBackendCuda}, {"host", hepBackendHost}};
constexpr Name<Operation> kOperations[] = {{"routing", Operation::kRouting},
                                           {"dispatch", Operation::kDispatch},
                                           {"combine", Operation::kCombine},
                                           {"layer", Operation::kLayer},
                                           {"layer-graph", Operation::kLayerGraph}};
constexpr Name<hepLayout_t> kLayouts[] = {{"flat", hepLayoutFlat},
                                          {"expert-major", hepLayoutExpertMajor},
                                          {"expert-padded", hepLayoutExpertPadded}};
constexpr Name<Memory> kMemories[] = {{"heap", Memory::kHeap}, {"any", Memory::kAny}};
constexpr Name<Distribution> kRoutings[] = {{"uniform", Distribution::kUniform},
                                            {"hot-rank", Distribution::kHotRank},
                                            {"hot-expert", Distribution::kHotExpert},
                                            {"zipf", Distribution::kZipf}};

template <typename T, size_t N>
Setter choice(T Options::*field, const Name<T> (&names)[N]) {
  return [=, &names](Options* options, const char* name) {
    return find_value(names, name, &(options->*field));
  };
}

template <typename T, size_t N>
Setter choices(std::vector<T> Options::*field, const Name<T> (&names)[N]) {
  return [=, &names](Options* options, const char* text) {
    return parse_list<T>(text, &(options->*field), [&](const std::string& name, T* value) {
      return find_value(names, name, value);
    });
  };
}

template <typename T>
Setter choices(std::vector<T> Options::*field, bool (*find)(const std::string&, T*)) {
  return [=](Options* options, const char* text) {
    return parse_list<T>(text, &(options->*field), find);
  };
}

Setter numbers(std::vector<int> Options::*field, int low = 1) {
  return [=](Options* options, const char* text) {
    return parse_list<int>(text, &(options->*field), [=](const std::string& item, int* value) {
      return parse_int(item.c_str(), low, value);
    });
  };
}

// Those in UE8M0 are only made by quantisation.
bool find_forwarded_scales(const std::string& name, Scales* scales) {
  return find_scales(name, scales) && *scales != Scales::kUe8m0;
}

bool add_vary(Options* options, const char* text) {
  Vary vary;
  if (!parse_vary(text, &vary)) return false;
  options->vary.push_back(vary);
  return true;
}

bool set_seed(Options* options, const char* text) {
  int64_t value;
  if (!parse_number(text, 0, INT64_MAX, &value)) return false;
  options->seed = static_cast<uint64_t>(value);
  return true;
}

bool set_in_place(Options* options, const char*) {
  options->memories = {Memory::kHeap};
  return true;
}

const std::vector<Option>& table() {
  static const std::vector<Option> options = {
      {'r', "ranks", "N",
       "ranks in all (default: the GPUs, or 4 on host); threads of this process, or spread over "
       "mpirun's",
       number(&Options::ranks, 1)},
      {'b', "backend", "NAME", "auto, cuda or host (default: auto)",
       choice(&Options::backend, kBackends)},
      {'t', "tokens", "LIST", "tokens a rank (default: 4096; host: 256)",
       numbers(&Options::tokens)},
      {'H', "hidden", "LIST", "elements of a row (default: 7168; host: 1024)",
       numbers(&Options::hidden)},
      {'k', "top-k", "LIST", "experts a token selects (default: 8; host: 4)",
       numbers(&Options::top_k)},
      {'d', "routing", "LIST", "uniform, hot-rank, hot-expert, zipf (default: uniform)",
       choices(&Options::routings, kRoutings)},
      {'f', "type", "LIST",
       "of rows: bf16, fp16, fp32, fp8-e4m3, fp8-e5m2 (default: bf16); FP8, and rows with scales, "
       "are dispatched alone",
       choices(&Options::types, find_type)},
      {'A', "scales", "LIST",
       "beside each row, forwarded: none, or fp32, one for 128 elements (default: fp32 for FP8, "
       "otherwise none)",
       choices(&Options::scales, find_forwarded_scales)},
      {'q', "quantize", "LIST",
       "of fp8-e4m3: none, or x is BF16 and is quantised on the way, with scales in fp32 or ue8m0 "
       "(default: none)",
       choices(&Options::quantizations, find_quantization)},
      {'e', "experts", "N", "experts in all (default: 8 a rank; host: 4 a rank)",
       number(&Options::experts, 1)},
      {'o', "operations", "LIST",
       "routing, dispatch, combine, layer, layer-graph (default: all; host: without the last)",
       choices(&Options::operations, kOperations)},
      {'l', "layouts", "LIST", "flat, expert-major, expert-padded (default: the first two)",
       choices(&Options::layouts, kLayouts)},
      {'s', "sms", "LIST",
       "SM budgets, a communicator for each (default: 8,16,24; host: the library's)",
       numbers(&Options::sms)},
      {'m', "memory", "LIST",
       "where x of dispatch and y of combine lie: heap (hepMemAlloc), any (default: both; host: "
       "any)",
       choices(&Options::memories, kMemories)},
      {'i', "in-place", nullptr, "the same as --memory heap", set_in_place},
      {'v', "vary", "FIELD=LIST",
       "try each value of a tuning field of hepConfig_t, such as dispatch_stages=4,8, besides the "
       "library's choice; fields of several --vary are crossed",
       add_vary},
      {'n', "iterations", "N", "timed calls a case (default: 30; host: 20)",
       number(&Options::iterations, 1)},
      {'w', "warmup", "N", "untimed calls before them (default: 10; host: 3)",
       number(&Options::warmup, 0)},
      {'a', "alignment", "N", "rows to which an expert's block is aligned (default: 1)",
       number(&Options::alignment, 1)},
      {'S', "seed", "N", "seed of routing, rows and weights (default: 1)", set_seed},
      {'T', "timeout-ms", "N", "bound of every wait (default: the library's)",
       number(&Options::timeout_ms, 1)},
      {'j', "json", "FILE", "write machine, config, ceilings and rows there as well",
       text(&Options::json)},
      {'p', "append", nullptr, "add to the runs that the JSON file holds already",
       flag(&Options::append, true)},
      {'C', "commit", "TEXT", "what was built, for the JSON file", text(&Options::commit)},
      {'L', "low-latency", nullptr,
       "measure low-latency routings instead, see below; defaults are then 1 to 512 tokens, 32 "
       "SMs, "
       "all layouts and 2000 iterations (host: 1 and 64 tokens, 20 iterations)",
       flag(&Options::low_latency, true)},
      {'I', "idle-ranks", "LIST",
       "of --low-latency: how many ranks, the last ones, have no tokens (default: 0)",
       numbers(&Options::idle_ranks, 0)},
      {'W', "no-weights", nullptr, "dispatch rows alone; combine is a plain sum",
       flag(&Options::weights, false)},
      {'B', "baselines", nullptr,
       "time NCCL as well: an all-to-all of the rows that the flat layout moves, and an all-gather "
       "of all tokens (cuda; $HEP_NCCL_LIBRARY or libnccl.so.2)",
       flag(&Options::baselines, true)},
      {'c', "no-check", nullptr, "do not compare results with the reference",
       flag(&Options::check, false)},
      {'x', "no-ceilings", nullptr, "do not measure what the links give",
       flag(&Options::ceilings, false)},
      {'K', "no-kernel-time", nullptr, "do not trace kernels, which needs CUPTI (libcupti.so)",
       flag(&Options::kernel_time, false)},
      {'h', "help", nullptr, "print this text", flag(&Options::help, true)},
  };
  return options;
}

constexpr const char* kDefinitions = R"(
Routings, all with distinct experts in a token:
  uniform     every expert alike
  hot-rank    half of the selections, as far as they can, go to rank 0
  hot-expert  every token selects expert 0
  zipf        the p-th most wanted expert is wanted in proportion to 1 / p

Lists of tokens, hidden, top-k, routing, type, scales and quantize are crossed; each combination is
measured with each SM budget. A case is one API call on a cached routing, between CUDA events on its
stream (host: by the clock). Dispatch carries weights; combine is a plain sum in the flat layout and
multiplies by the dispatched weights in the others. A layer is a routing update, a dispatch and a
combine of what it gave, alternating between two batches; layer-graph is the same as a captured CUDA
graph.
  format       type of the rows, + that of the scales beside them; x > rows where it is quantised
  median, min  microseconds; the time of an iteration is that of its slowest rank
  kernel us    the kernels alone, without copies and launch gaps (CUPTI, in a pass of its own);
               median, an iteration counting as long as on its slowest rank
  host us      what the host takes to enqueue it, median of all ranks; the header tells what a bare
               launch of an empty kernel with 2 KiB of arguments takes
  alg GB/s     bytes of the flat rows that a rank receives, and in dispatch of their scales, its own
               included (mean of the ranks), over the median; in both layouts and both directions, so
               that figures compare
  NVLink GB/s  the same without the rank's own rows: what crosses NVLink (host: between ranks)
  ceiling      NVLink GB/s of the faster of TMA load from and TMA store to peers with the SM budget
               of the case, all GPUs at once, measured in the same run
  wrong        values of all ranks that differ from the reference; must be 0
With --vary, the last lines name the best values for each case and how far the default is from them;
values that the library refuses are named and left out.

--low-latency measures how long one operation takes, the routing update being part of the dispatch.
A run follows a pause of some 20 us, is enqueued beforehand on all ranks, and lasts as long as on its
slowest rank; p50, p99 and max are of all runs. Batches alternate between two. Each operation is
called (eager), replayed as a captured graph (cuda), or one of 16 in a row in such a graph (chain):
then its time is a sixteenth, without what begins and ends a run. The halves, send and receive, have
such a pause between, in which the data of small batches arrives: their times are what other work
does not hide.
On cuda the overlap with a stand-in for a GEMM follows, in the first of the layouts and memories; it
runs on the SMs that the operations leave free:
  gemm us      all GEMMs alone, one after the other
  operation us all operations alone, one after the other
  together us  both on two streams; for double-batch, where two batches on two lanes take turns with
               dispatch, GEMM and combine, a layer of both
  exposed us   by how much that is longer than the longer of the two

The JSON file is a list of runs, each with its machine, config and ceilings.
The exit status is 0 if every call succeeded and no value is wrong.
)";

}  // namespace

bool parse_options(int argc, char** argv, Options* options, std::string* error) {
  std::string short_options;
  std::vector<option> long_options;
  for (const Option& entry : table()) {
    short_options += entry.short_name;
    if (entry.argument) short_options += ':';
    long_options.push_back({entry.long_name, entry.argument ? required_argument : no_argument,
                            nullptr, entry.short_name});
  }
  long_options.push_back({nullptr, 0, nullptr, 0});
  opterr = 0;  // this function reports
  for (int name; (name = getopt_long(argc, argv, short_options.c_str(), long_options.data(),
                                     nullptr)) != -1;) {
    const Option* found = nullptr;
    for (const Option& entry : table()) {
      if (entry.short_name == name) found = &entry;
    }
    if (!found) {
      *error = std::string("unknown option, or no value given: ") + argv[optind - 1];
      return false;
    }
    if (!found->set(options, optarg)) {
      *error = std::string("--") + found->long_name + " does not take '" + optarg + "'";
      return false;
    }
  }
  if (optind < argc) {
    *error = std::string("unexpected argument '") + argv[optind] + "'";
    return false;
  }
  return true;
}

std::string help_text() {
  std::ostringstream text;
  text << "hep_perf: times routing, dispatch and combine, and compares their results with a "
          "reference\n"
          "Usage: [mpirun -np N] hep_perf [options]\n\n";
  for (const Option& entry : table()) {
    std::string names = std::string("  -") + entry.short_name + ", --" + entry.long_name;
    if (entry.argument) names += std::string(" ") + entry.argument;
    names.resize(names.size() < 26 ? 26 : names.size() + 1, ' ');
    text << names << entry.help << '\n';
  }
  text << kDefinitions;
  return text.str();
}

const char* operation_name(Operation operation) { return find_name(kOperations, operation); }
const char* layout_name(hepLayout_t layout) { return find_name(kLayouts, layout); }
const char* memory_name(Memory memory) { return find_name(kMemories, memory); }
const char* routing_name(Distribution routing) { return find_name(kRoutings, routing); }

}  // namespace perf
