// SPDX-License-Identifier: Apache-2.0
// One table of options: the parser and --help both read it.
#include "options.h"

#include <getopt.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <functional>
#include <sstream>

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

bool parse_number(const char* text, int64_t low, int64_t high, int64_t* value) {
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || number < low || number > high) return false;
  *value = number;
  return true;
}

Setter number(int Options::*field, int low) {
  return [=](Options* options, const char* text) {
    int64_t value;
    if (!parse_number(text, low, INT_MAX, &value)) return false;
    options->*field = static_cast<int>(value);
    return true;
  };
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

template <typename T>
struct Name {
  const char* name;
  T value;
};

constexpr Name<hepBackend_t> kBackends[] = {
    {"auto", hepBackendAuto}, {"cuda", hepBackendCuda}, {"host", hepBackendHost}};
constexpr Name<hepLayout_t> kLayouts[] = {{"flat", hepLayoutFlat},
                                          {"expert-major", hepLayoutExpertMajor}};
constexpr Name<Memory> kMemories[] = {{"heap", Memory::kHeap}, {"any", Memory::kAny}};
constexpr Name<Distribution> kRoutings[] = {{"uniform", Distribution::kUniform},
                                            {"hot-rank", Distribution::kHotRank},
                                            {"hot-expert", Distribution::kHotExpert},
                                            {"zipf", Distribution::kZipf}};

template <typename T, size_t N>
bool find_value(const Name<T> (&names)[N], const std::string& name, T* value) {
  for (const Name<T>& candidate : names) {
    if (name != candidate.name) continue;
    *value = candidate.value;
    return true;
  }
  return false;
}

template <typename T, size_t N>
const char* find_name(const Name<T> (&names)[N], T value) {
  for (const Name<T>& candidate : names) {
    if (value == candidate.value) return candidate.name;
  }
  return "?";
}

template <typename T, size_t N>
Setter choice(T Options::*field, const Name<T> (&names)[N]) {
  return [=, &names](Options* options, const char* name) {
    return find_value(names, name, &(options->*field));
  };
}

template <typename T>
Setter list(std::vector<T> Options::*field, std::function<bool(const std::string&, T*)> parse) {
  return [=](Options* options, const char* text) {
    std::vector<T> values;
    std::istringstream stream(text);
    for (std::string item; std::getline(stream, item, ',');) {
      T value;
      if (!parse(item, &value)) return false;
      values.push_back(value);
    }
    options->*field = values;
    return !values.empty();
  };
}

template <typename T, size_t N>
Setter choices(std::vector<T> Options::*field, const Name<T> (&names)[N]) {
  return list<T>(field, [&names](const std::string& name, T* value) {
    return find_value(names, name, value);
  });
}

Setter numbers(std::vector<int> Options::*field) {
  return list<int>(field, [](const std::string& text, int* value) {
    int64_t number;
    if (!parse_number(text.c_str(), 1, INT_MAX, &number)) return false;
    *value = static_cast<int>(number);
    return true;
  });
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
      {'t', "tokens", "N", "tokens a rank (default: 4096; host: 256)", number(&Options::tokens, 1)},
      {'H', "hidden", "N", "elements of a row (default: 7168; host: 1024)",
       number(&Options::hidden, 1)},
      {'k', "top-k", "N", "experts a token selects (default: 8; host: 4)",
       number(&Options::top_k, 1)},
      {'e', "experts", "N", "experts in all (default: 8 a rank; host: 4 a rank)",
       number(&Options::experts, 1)},
      {'l', "layouts", "LIST", "flat, expert-major (default: both)",
       choices(&Options::layouts, kLayouts)},
      {'s', "sms", "LIST",
       "SM budgets, a communicator for each (default: 8,16,24; host: the library's)",
       numbers(&Options::sms)},
      {'m', "memory", "LIST",
       "where x of dispatch and y of combine lie: heap (hepMemAlloc), any (default: both; host: "
       "any)",
       choices(&Options::memories, kMemories)},
      {'i', "in-place", nullptr, "the same as --memory heap", set_in_place},
      {'n', "iterations", "N", "timed calls a case (default: 50; host: 20)",
       number(&Options::iterations, 1)},
      {'w', "warmup", "N", "untimed calls before them (default: 10; host: 3)",
       number(&Options::warmup, 0)},
      {'a', "alignment", "N", "rows to which an expert's block is aligned (default: 1)",
       number(&Options::alignment, 1)},
      {'d', "routing", "NAME", "uniform, hot-rank, hot-expert or zipf (default: uniform)",
       choice(&Options::routing, kRoutings)},
      {'S', "seed", "N", "seed of routing, rows and weights (default: 1)", set_seed},
      {'T', "timeout-ms", "N", "bound of every wait (default: the library's)",
       number(&Options::timeout_ms, 1)},
      {'j', "json", "FILE", "write machine, config, ceilings and rows there as well",
       text(&Options::json)},
      {'C', "commit", "TEXT", "what was built, for the JSON file", text(&Options::commit)},
      {'W', "no-weights", nullptr, "dispatch rows alone; combine is a plain sum",
       flag(&Options::weights, false)},
      {'c', "no-check", nullptr, "do not compare results with the reference",
       flag(&Options::check, false)},
      {'x', "no-ceilings", nullptr, "do not measure what the links give",
       flag(&Options::ceilings, false)},
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

A case is one API call on a cached routing, between CUDA events on its stream (host: by the clock).
Dispatch carries weights; combine is a plain sum in the flat layout and multiplies by the dispatched
weights in the expert-major layout.
  median, min  microseconds; the time of an iteration is that of its slowest rank
  alg GB/s     bytes of the flat rows that a rank receives, its own included (mean of the ranks),
               over the median; in both layouts and both directions, so that figures compare
  NVLink GB/s  the same without the rank's own rows: what crosses NVLink (host: between ranks)
  ceiling      NVLink GB/s of the faster of TMA load from and TMA store to peers with the SM budget
               of the case, all GPUs at once, measured in the same run
  wrong        values of all ranks that differ from the reference; must be 0
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

bool resolve_defaults(hepBackend_t backend, int num_ranks, Options* options, std::string* error) {
  const bool cuda = backend == hepBackendCuda;
  const auto fill = [](int* field, int value) {
    if (*field == 0) *field = value;
  };
  fill(&options->tokens, cuda ? 4096 : 256);
  fill(&options->hidden, cuda ? 7168 : 1024);
  fill(&options->top_k, cuda ? 8 : 4);
  fill(&options->experts, num_ranks * (cuda ? 8 : 4));
  fill(&options->iterations, cuda ? 50 : 20);
  if (options->warmup < 0) options->warmup = cuda ? 10 : 3;
  if (options->sms.empty()) options->sms = cuda ? std::vector<int>{8, 16, 24} : std::vector<int>{0};
  if (options->memories.empty()) {
    options->memories =
        cuda ? std::vector<Memory>{Memory::kHeap, Memory::kAny} : std::vector<Memory>{Memory::kAny};
  }
  if (options->top_k > options->experts) {
    *error = "--top-k " + std::to_string(options->top_k) + " is more than --experts " +
             std::to_string(options->experts) + ": a token selects distinct experts";
    return false;
  }
  return true;
}

std::string help_text() {
  std::ostringstream text;
  text << "hep_perf: times dispatch and combine, and compares their results with a reference\n"
          "Usage: [mpirun -np N] hep_perf [options]\n\n";
  for (const Option& entry : table()) {
    std::string names = std::string("  -") + entry.short_name + ", --" + entry.long_name;
    if (entry.argument) names += std::string(" ") + entry.argument;
    names.resize(names.size() < 24 ? 24 : names.size() + 1, ' ');
    text << names << entry.help << '\n';
  }
  text << kDefinitions;
  return text.str();
}

const char* layout_name(hepLayout_t layout) { return find_name(kLayouts, layout); }
const char* memory_name(Memory memory) { return find_name(kMemories, memory); }
const char* routing_name(Distribution routing) { return find_name(kRoutings, routing); }

}  // namespace perf
