// SPDX-License-Identifier: Apache-2.0
#include "command_line.h"

#include <cstdint>

namespace bench {
namespace {

const Names<hepBackend_t> kBackendNames = {
    {"auto", hepBackendAuto}, {"cuda", hepBackendCuda}, {"host", hepBackendHost}};

// Scales in UE8M0 are only made by quantisation.
const Names<Scales> kForwardedScalesNames = {{"none", Scales::kNone}, {"fp32", Scales::kFloat32}};

void add_numbers(CLI::App* app, const char* name, std::vector<int>* field, int low,
                 const char* help) {
  app->add_option(name, *field, help)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("LIST")
      ->check(CLI::Range(low, INT32_MAX).description(""));
}

void add_number(CLI::App* app, const char* name, int* field, int low, const char* help) {
  app->add_option(name, *field, help)
      ->type_name("N")
      ->check(CLI::Range(low, INT32_MAX).description(""));
}

void add_shape_options(CLI::App* app, Options* options) {
  add_numbers(app, "-t,--tokens", &options->tokens, 1, "tokens a rank");
  add_numbers(app, "-H,--hidden", &options->hidden, 1,
              "elements of a row (default: 7168; host: 1024)");
  add_numbers(app, "-k,--top-k", &options->top_k, 1,
              "experts a token selects (default: 8; host: 4)");
  add_number(app, "-e,--experts", &options->experts, 1,
             "experts in all (default: 8 a rank; host: 4 a rank)");
  add_words(app, "-d,--routing", &options->routings, kRoutingNames,
            "uniform, hot-rank, hot-expert, zipf (default: uniform)");
  add_words(app, "-f,--type", &options->types, kTypeNames,
            "of rows: bf16, fp16, fp32, fp8-e4m3, fp8-e5m2 (default: bf16); FP8, and rows with "
            "scales, are dispatched alone");
  add_words(app, "-A,--scales", &options->scales, kForwardedScalesNames,
            "forwarded beside each row: none, or fp32, one for 128 elements (default: fp32 for "
            "FP8, otherwise none)");
  add_words(app, "-q,--quantize", &options->quantizations, kQuantizationNames,
            "of fp8-e4m3: none, or dispatch quantises x from BF16, with scales in fp32 or ue8m0 "
            "(default: none)");
  add_number(app, "-a,--alignment", &options->alignment, 1,
             "rows to which an expert's block is aligned (default: 1)");
  app->add_option("-S,--seed", options->seed, "seed of routing, rows and weights (default: 1)")
      ->type_name("N");
}

}  // namespace

void add_options(CLI::App* app, Options* options) {
  add_number(app, "-r,--ranks", &options->ranks, 1,
             "ranks in all (default: the GPUs, or 4 on host): threads of this process, or spread "
             "over mpirun's");
  add_number(app, "-D,--domain-size", &options->domain_size, 1,
             "ranks of a domain, which divide all ranks (default: all); a network joins domains");
  app->add_option("-b,--backend", options->backend, "auto, cuda or host (default: auto)")
      ->type_name("NAME")
      ->transform(CLI::CheckedTransformer(kBackendNames).description(""));
  add_shape_options(app, options);
  add_words(app, "-l,--layouts", &options->layouts, kLayoutNames,
            "flat, expert-major, expert-padded");
  add_words(app, "-m,--memory", &options->memories, kMemoryNames,
            "where x of dispatch and y of combine lie: heap (hepMemAlloc), any (default: both; "
            "host: any)");
  add_numbers(app, "-s,--sms", &options->sms, 0, "SM budgets, a communicator for each");
  add_number(app, "-n,--iterations", &options->iterations, 1, "timed calls a case");
  add_number(app, "-w,--warmup", &options->warmup, 0,
             "untimed calls before them (default: 10; host: 3)");
  add_number(app, "-T,--timeout-ms", &options->timeout_ms, 1,
             "bound of every wait (default: the library's)");
  app->add_flag_callback(
      "-W,--no-weights", [=] { options->weights = false; },
      "dispatch rows alone; combine is a plain sum");
  app->add_flag_callback(
      "-c,--no-check", [=] { options->check = false; },
      "do not compare results with the reference");
  app->add_option("-j,--json", options->json, "append a JSON line for each case to this file")
      ->type_name("FILE");
  app->add_option("-C,--commit", options->commit,
                  "commit for the JSON lines (default: that of the build)")
      ->type_name("TEXT");
}

}  // namespace bench
