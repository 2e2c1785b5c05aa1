// SPDX-License-Identifier: Apache-2.0
// From a caller's config to a resolved one: compatibility, rules, defaults.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "config/abi.h"
#include "config/fields.h"
#include "config_fixture.h"
#include "protocol/data_type.h"

namespace hep {
namespace {

using ConfigStruct = Config;

// ------------------------------------------------------------------------------------ versions

TEST_F(ConfigStruct, NullIsRefused) {
  hepConfig_t resolved;
  const Status status = resolve_config(nullptr, kRanks, &resolved);
  EXPECT_EQ(status.result(), hepErrorInvalidArgument);
  EXPECT_NE(status.message().find("hepConfig_t is NULL"), std::string::npos) << status.message();
}

TEST_F(ConfigStruct, AnImpossibleSizeIsRefused) {
  for (size_t size : {size_t{0}, size_t{15}, SIZE_MAX}) {
    hepConfig_t config = valid_config();
    config.size = size;
    hepConfig_t resolved;
    const Status status = resolve_config(&config, kRanks, &resolved);
    EXPECT_EQ(status.result(), hepErrorInvalidArgument) << size;
    EXPECT_NE(status.message().find(std::to_string(size)), std::string::npos) << status.message();
  }
}

TEST_F(ConfigStruct, AnotherStructIsRefused) {
  hepConfig_t config = valid_config();
  config.magic = HEP_LIMITS_MAGIC;
  hepConfig_t resolved;
  EXPECT_EQ(resolve_config(&config, kRanks, &resolved).result(), hepErrorInvalidArgument);
}

// An older header knows only the fields up to heap_bytes.
TEST_F(ConfigStruct, FieldsThatAnOlderHeaderDoesNotKnowAreDefaults) {
  hepConfig_t config = valid_config();
  config.size = offsetof(hepConfig_t, timeout_ms);
  config.version = 1;
  config.timeout_ms = 7;  // stands for what lies behind the older struct
  const hepConfig_t resolved = resolved_config(config);
  EXPECT_EQ(resolved.hidden, 7168);
  EXPECT_EQ(resolved.timeout_ms, 30000);
  EXPECT_EQ(resolved.size, sizeof(hepConfig_t));
  EXPECT_EQ(resolved.version, static_cast<uint32_t>(HEP_VERSION));
}

struct NewerConfig {
  hepConfig_t config;
  int64_t unknown[2];
};

TEST_F(ConfigStruct, FieldsOfANewerHeaderMayBeZero) {
  NewerConfig newer = {valid_config(), {0, 0}};
  newer.config.size = sizeof newer;
  EXPECT_EQ(resolved_config(newer.config).hidden, 7168);
}

TEST_F(ConfigStruct, FieldsOfANewerHeaderThatAreSetAreUnsupported) {
  NewerConfig newer = {valid_config(), {0, 1}};
  newer.config.size = sizeof newer;
  hepConfig_t resolved;
  EXPECT_EQ(resolve_config(&newer.config, kRanks, &resolved).result(), hepErrorUnsupported);
}

TEST_F(ConfigStruct, OutputsAreWrittenAsFarAsTheCallersHeaderReaches) {
  hepWorkspace_t mine = HEP_WORKSPACE_INITIALIZER;
  std::memset(&mine.total_bytes, 1, sizeof mine - offsetof(hepWorkspace_t, total_bytes));
  hepWorkspace_t theirs = HEP_WORKSPACE_INITIALIZER;
  theirs.size = offsetof(hepWorkspace_t, partial_bytes);
  theirs.version = 1;
  ASSERT_TRUE(check_output_struct(&theirs, HEP_WORKSPACE_MAGIC, "hepWorkspace_t").ok());
  write_struct(&mine, sizeof mine, &theirs);
  EXPECT_EQ(theirs.total_bytes, 0x0101010101010101u);
  EXPECT_EQ(theirs.token_bytes, 0x0101010101010101u);
  EXPECT_EQ(theirs.partial_bytes, 0u);
  EXPECT_EQ(theirs.size, offsetof(hepWorkspace_t, partial_bytes));
  EXPECT_EQ(theirs.version, 1u);
}

TEST_F(ConfigStruct, AnOutputThatIsNotInitializedIsRefused) {
  hepWorkspace_t theirs{};
  EXPECT_EQ(check_output_struct(&theirs, HEP_WORKSPACE_MAGIC, "hepWorkspace_t").result(),
            hepErrorInvalidArgument);
  EXPECT_EQ(check_output_struct(nullptr, HEP_WORKSPACE_MAGIC, "hepWorkspace_t").result(),
            hepErrorInvalidArgument);
}

// --------------------------------------------------------------------------------------- rules

struct Rule {
  const char* description;
  std::function<void(hepConfig_t*)> change;
  int num_ranks;
  hepResult_t result;
  std::vector<const char*> words;  // that the sentence must contain
};

const hepResult_t kInvalid = hepErrorInvalidArgument;

const Rule kRules[] = {
    {"no ranks", [](hepConfig_t*) {}, 0, kInvalid, {"num_ranks", "0", "1 to 72"}},
    {"negative ranks", [](hepConfig_t*) {}, -1, kInvalid, {"num_ranks", "-1"}},
    {"73 ranks",
     [](hepConfig_t* c) { c->num_experts = 73; },
     73,
     kInvalid,
     {"num_ranks", "73", "1 to 72"}},
    {"no tokens", [](hepConfig_t* c) { c->max_tokens = 0; }, 4, kInvalid, {"max_tokens", "65536"}},
    {"negative tokens", [](hepConfig_t* c) { c->max_tokens = -5; }, 4, kInvalid, {"max_tokens"}},
    {"too many tokens",
     [](hepConfig_t* c) { c->max_tokens = 65537; },
     4,
     kInvalid,
     {"max_tokens", "65537", "65536"}},
    {"no hidden", [](hepConfig_t* c) { c->hidden = 0; }, 4, kInvalid, {"hidden", "0", "65536"}},
    {"negative hidden", [](hepConfig_t* c) { c->hidden = -8; }, 4, kInvalid, {"hidden", "-8"}},
    {"row of 18 bytes",
     [](hepConfig_t* c) { c->hidden = 9; },
     4,
     kInvalid,
     {"hidden", "9", "18", "multiple of 16"}},
    {"row over 64 KiB",
     [](hepConfig_t* c) { c->hidden = 32776; },
     4,
     kInvalid,
     {"hidden", "32776", "65552", "65536"}},
    {"hidden whose row overflows 32 bits",
     [](hepConfig_t* c) { c->hidden = 0x7ffffff8; },
     4,
     kInvalid,
     {"hidden"}},
    {"no experts", [](hepConfig_t* c) { c->num_experts = 0; }, 4, kInvalid, {"num_experts"}},
    {"too many experts",
     [](hepConfig_t* c) { c->num_experts = 4100; },
     4,
     kInvalid,
     {"num_experts", "4100", "4096"}},
    {"experts that the ranks do not divide",
     [](hepConfig_t* c) { c->num_experts = 30; },
     4,
     kInvalid,
     {"num_experts", "30", "multiple", "4"}},
    {"negative top-k", [](hepConfig_t* c) { c->max_top_k = -1; }, 4, kInvalid, {"max_top_k"}},
    {"top-k over 32",
     [](hepConfig_t* c) { c->max_top_k = 33; },
     4,
     kInvalid,
     {"max_top_k", "33", "1 to 32"}},
    {"negative heap", [](hepConfig_t* c) { c->heap_bytes = -1; }, 4, kInvalid, {"heap_bytes"}},
    {"heap over a terabyte",
     [](hepConfig_t* c) { c->heap_bytes = (int64_t{1} << 40) + 1; },
     4,
     kInvalid,
     {"heap_bytes"}},
    {"no backend", [](hepConfig_t* c) { c->backend = 3; }, 4, kInvalid, {"backend", "3", "host"}},
    {"negative backend", [](hepConfig_t* c) { c->backend = -1; }, 4, kInvalid, {"backend"}},
    {"no type", [](hepConfig_t* c) { c->type = 7; }, 4, kInvalid, {"type", "7"}},
    {"negative timeout", [](hepConfig_t* c) { c->timeout_ms = -1; }, 4, kInvalid, {"timeout_ms"}},
    {"timeout over an hour",
     [](hepConfig_t* c) { c->timeout_ms = 3600001; },
     4,
     kInvalid,
     {"timeout_ms", "3600000"}},
    {"budget of one SM",
     [](hepConfig_t* c) { c->sm_budget = 1; },
     4,
     kInvalid,
     {"sm_budget", "1", "2 to 256"}},
    {"budget of 257 SMs", [](hepConfig_t* c) { c->sm_budget = 257; }, 4, kInvalid, {"sm_budget"}},
    {"negative lanes", [](hepConfig_t* c) { c->lanes = -1; }, 4, kInvalid, {"lanes"}},
    {"negative domain", [](hepConfig_t* c) { c->domain_size = -1; }, 4, kInvalid, {"domain_size"}},
    {"domain larger than the ranks",
     [](hepConfig_t* c) { c->domain_size = 5; },
     4,
     kInvalid,
     {"domain_size", "5", "4"}},
    {"negative threads",
     [](hepConfig_t* c) { c->routing_threads = -32; },
     4,
     kInvalid,
     {"routing_threads"}},
    {"threads that are no multiple of 32",
     [](hepConfig_t* c) { c->routing_threads = 100; },
     4,
     kInvalid,
     {"routing_threads", "100", "32"}},
    {"too many threads",
     [](hepConfig_t* c) { c->routing_threads = 1056; },
     4,
     kInvalid,
     {"routing_threads", "1024"}},
    {"routing blocks over the budget",
     [](hepConfig_t* c) { c->routing_blocks = 65; },
     4,
     kInvalid,
     {"routing_blocks", "65", "sm_budget", "64"}},
    {"dispatch blocks over the budget",
     [](hepConfig_t* c) { c->dispatch_blocks = 9, c->sm_budget = 8; },
     4,
     kInvalid,
     {"dispatch_blocks", "9", "sm_budget", "8"}},
    {"combine blocks over the budget",
     [](hepConfig_t* c) { c->combine_blocks = 65; },
     4,
     kInvalid,
     {"combine_blocks"}},
    {"one combine block",
     [](hepConfig_t* c) { c->combine_blocks = 1; },
     4,
     kInvalid,
     {"combine_blocks", "2 to 256"}},
    {"one dispatch stage",
     [](hepConfig_t* c) { c->dispatch_stages = 1; },
     4,
     kInvalid,
     {"dispatch_stages", "2 to 32"}},
    {"dispatch stages that do not fit in shared memory",
     [](hepConfig_t* c) { c->dispatch_stages = 16; },
     4,
     kInvalid,
     {"dispatch_stages", "16", "14336"}},
    {"33 load stages",
     [](hepConfig_t* c) { c->combine_load_stages = 33; },
     4,
     kInvalid,
     {"combine_load_stages"}},
    {"five store stages",
     [](hepConfig_t* c) { c->combine_store_stages = 5; },
     4,
     kInvalid,
     {"combine_store_stages", "5", "1 to 4"}},
    {"negative store stages",
     [](hepConfig_t* c) { c->combine_store_stages = -1; },
     4,
     kInvalid,
     {"combine_store_stages"}},
    {"combine of FP8",
     [](hepConfig_t* c) { c->combine_type = hepTypeFloat8E4M3; },
     4,
     kInvalid,
     {"combine_type", "hepTypeFloat8E4M3"}},
    {"combine of no type",
     [](hepConfig_t* c) { c->combine_type = 9; },
     4,
     kInvalid,
     {"combine_type", "9"}},
    {"partial sums in FP16",
     [](hepConfig_t* c) { c->partial_type = hepTypeFloat16; },
     4,
     kInvalid,
     {"partial_type", "hepTypeFloat16"}},
    {"FP32 rows whose BF16 partial sums have 8 bytes",
     [](hepConfig_t* c) { c->type = hepTypeFloat32, c->hidden = 4; },
     4,
     kInvalid,
     {"partial_type", "8 bytes", "multiple of 16"}},
    {"FP8 row of 8 bytes",
     [](hepConfig_t* c) { c->type = hepTypeFloat8E5M2, c->hidden = 8; },
     4,
     kInvalid,
     {"hidden", "8", "multiple of 16"}},
    {"negative scales",
     [](hepConfig_t* c) { c->scale_bytes = -1; },
     4,
     kInvalid,
     {"scale_bytes", "-1"}},
    {"too many scales",
     [](hepConfig_t* c) { c->scale_bytes = 16385; },
     4,
     kInvalid,
     {"scale_bytes", "16385", "16384"}},
    {"negative low-latency tokens",
     [](hepConfig_t* c) { c->low_latency_tokens = -1; },
     4,
     kInvalid,
     {"low_latency_tokens", "-1", "65536"}},
    {"too many low-latency tokens",
     [](hepConfig_t* c) { c->low_latency_tokens = 65537; },
     4,
     kInvalid,
     {"low_latency_tokens", "65537", "65536"}},
    {"one low-latency block",
     [](hepConfig_t* c) { c->low_latency_blocks = 1; },
     4,
     kInvalid,
     {"low_latency_blocks", "1", "2"}},
    {"five lanes", [](hepConfig_t* c) { c->lanes = 5; }, 4, kInvalid, {"lanes", "5", "4"}},
    {"negative timeout of creation",
     [](hepConfig_t* c) { c->init_timeout_ms = -1; },
     4,
     kInvalid,
     {"init_timeout_ms", "-1"}},
    {"timeout of creation over an hour",
     [](hepConfig_t* c) { c->init_timeout_ms = 3600001; },
     4,
     kInvalid,
     {"init_timeout_ms", "3600000"}},
    {"domains that do not divide the ranks",
     [](hepConfig_t* c) { c->domain_size = 3; },
     4,
     kInvalid,
     {"domain_size", "3", "divide", "4"}},
    {"two domains on the cuda backend",
     [](hepConfig_t* c) {
       c->backend = hepBackendCuda;
       c->domain_size = 2;
     },
     4,
     hepErrorUnsupported,
     {"domain_size", "2 domains", "4 ranks", "cuda"}},
    {"rings without room for a row",
     [](hepConfig_t* c) {
       c->domain_size = 2;
       c->network_bytes = 8191;
     },
     4,
     kInvalid,
     {"network_bytes", "8191", "1 other domains"}},
    {"negative bytes of rings",
     [](hepConfig_t* c) { c->network_bytes = -1; },
     4,
     kInvalid,
     {"network_bytes", "4294967296"}},
};

TEST_F(Config, ABrokenRuleIsNamedWithTheFieldAndTheValues) {
  for (const Rule& rule : kRules) {
    SCOPED_TRACE(rule.description);
    hepConfig_t config = valid_config();
    rule.change(&config);
    hepConfig_t resolved;
    const Status status = resolve_config(&config, rule.num_ranks, &resolved);
    EXPECT_EQ(status.result(), rule.result);
    for (const char* word : rule.words)
      EXPECT_NE(status.message().find(word), std::string::npos)
          << "no \"" << word << "\" in: " << status.message();
  }
}

TEST_F(Config, TheLimitsThemselvesAreLegal) {
  hepConfig_t config = valid_config();
  config.max_tokens = 65536;
  config.hidden = 32768;
  config.num_experts = 72 * 56;
  config.max_top_k = 32;
  config.heap_bytes = int64_t{1} << 40;
  config.timeout_ms = config.init_timeout_ms = 3600000;
  config.sm_budget = 256;
  config.routing_threads = 1024;
  config.routing_blocks = config.dispatch_blocks = config.combine_blocks = 256;
  config.dispatch_stages = 3;
  config.combine_load_stages = 32;
  config.combine_store_stages = 4;
  config.domain_size = 72;
  config.lanes = 4;
  config.low_latency_tokens = 65536;
  config.low_latency_blocks = 256;
  resolved_config(config, 72);

  config = valid_config();
  config.max_tokens = config.max_top_k = config.num_experts = 1;
  config.hidden = 8;
  config.timeout_ms = config.init_timeout_ms = config.lanes = config.domain_size = 1;
  config.sm_budget = 2;
  resolved_config(config, 1);
}

TEST_F(Config, ZeroMeansTheDocumentedDefault) {
  const hepConfig_t resolved = resolved_config();
  EXPECT_EQ(resolved.backend, hepBackendAuto);
  EXPECT_EQ(resolved.type, hepTypeBfloat16);
  EXPECT_EQ(resolved.max_top_k, 8);
  EXPECT_EQ(resolved.timeout_ms, 30000);
  EXPECT_EQ(resolved.init_timeout_ms, 30000);
  EXPECT_EQ(resolved.sm_budget, 64);
  EXPECT_EQ(resolved.lanes, 1);
  EXPECT_EQ(resolved.domain_size, 0);  // until creation knows the hosts
  EXPECT_EQ(make_topology(resolved, kRanks).num_domains(), 1);
  EXPECT_EQ(resolved.network_bytes, 64 << 20);
  EXPECT_EQ(resolved.heap_bytes, 0);
  EXPECT_EQ(resolved.combine_type, hepTypeBfloat16);
  EXPECT_EQ(resolved.partial_type, hepTypeBfloat16);
  EXPECT_EQ(resolved.low_latency_tokens, 0);
  EXPECT_EQ(resolved.low_latency_blocks, 0);
}

TEST_F(Config, LowLatencyOperationsKeepToTheSmBudgetUnlessTheirCountIsSet) {
  hepConfig_t config = valid_config();
  config.sm_budget = 6;
  const auto budget = [&] { return make_budget(resolved_config(config), hepModeLowLatency); };
  EXPECT_EQ(budget().dispatch.most, 6);
  EXPECT_FALSE(budget().dispatch.fixed);
  EXPECT_LE(budget().routing_blocks, 6);
  config.low_latency_blocks = 40;
  EXPECT_EQ(budget().dispatch.most, 40);
  EXPECT_TRUE(budget().dispatch.fixed);
  EXPECT_TRUE(budget().combine.fixed);
}

TEST_F(Config, CombineTakesTheDispatchTypeIfItCanBeAdded) {
  const struct {
    int32_t type, combine_type;
  } table[] = {{hepTypeFloat16, hepTypeFloat16},
               {hepTypeFloat32, hepTypeFloat32},
               {hepTypeFloat8E4M3, hepTypeBfloat16},
               {hepTypeFloat8E5M2, hepTypeBfloat16},
               {hepTypeBytes, hepTypeBfloat16}};
  for (const auto& entry : table) {
    hepConfig_t config = valid_config();
    config.type = entry.type;
    EXPECT_EQ(resolved_config(config).combine_type, entry.combine_type) << entry.type;
  }
}

TEST_F(Config, TheTimeoutOfCreationIsTakenWhateverElseIsWrong) {
  hepConfig_t config = valid_config();
  EXPECT_EQ(wanted_init_timeout_ms(&config), 30000);
  config.hidden = 12;
  config.init_timeout_ms = 77;
  EXPECT_EQ(wanted_init_timeout_ms(&config), 77);
  setenv("HEP_INIT_TIMEOUT_MS", "88", 1);
  EXPECT_EQ(wanted_init_timeout_ms(&config), 88);
  setenv("HEP_INIT_TIMEOUT_MS", "soon", 1);
  EXPECT_EQ(wanted_init_timeout_ms(&config), 77);
  unsetenv("HEP_INIT_TIMEOUT_MS");
  for (const char* other : {"HEP_BACKEND", "HEP_TIMEOUT_MS", "HEP_LANES"}) {
    setenv(other, "rubbish", 1);
    EXPECT_EQ(wanted_init_timeout_ms(&config), 77) << other;
    unsetenv(other);
  }
  for (const int wrong : {-1, 3600001}) {
    config.init_timeout_ms = wrong;
    EXPECT_EQ(wanted_init_timeout_ms(&config), 30000);
  }
  EXPECT_EQ(wanted_init_timeout_ms(nullptr), 30000);
}

TEST_F(Config, TheEnvironmentOverridesTheCallersFields) {
  setenv("HEP_SM_BUDGET", "24", 1);
  setenv("HEP_BACKEND", "host", 1);
  hepConfig_t config = valid_config();
  config.sm_budget = 8;
  const hepConfig_t resolved = resolved_config(config);
  EXPECT_EQ(resolved.sm_budget, 24);
  EXPECT_EQ(resolved.backend, hepBackendHost);
}

// What a variable has set must not be blamed on the caller's struct.
TEST_F(Config, ErrorsNameTheVariableThatAValueComesFrom) {
  struct Case {
    const char *variable, *value;
  };
  for (const auto& [variable, value] :
       {Case{"HEP_TIMEOUT_MS", "-1"}, Case{"HEP_LANES", "5"}, Case{"HEP_DOMAIN_SIZE", "3"},
        Case{"HEP_DOMAIN_SIZE", "72"}, Case{"HEP_ROUTING_THREADS", "100"},
        Case{"HEP_ROUTING_BLOCKS", "200"}, Case{"HEP_DISPATCH_BLOCKS", "200"},
        Case{"HEP_COMBINE_BLOCKS", "200"}, Case{"HEP_DISPATCH_STAGES", "32"}}) {
    setenv(variable, value, 1);
    hepConfig_t config = valid_config(), resolved;
    config.hidden = 32768;
    const std::string sentence = resolve_config(&config, kRanks, &resolved).message();
    EXPECT_EQ(sentence.find(variable), 0u) << sentence;
    EXPECT_NE(sentence.find(value), std::string::npos) << sentence;
    unsetenv(variable);
  }
}

TEST_F(Config, ErrorsNameTheVariableOfALimitThatAFieldExceeds) {
  setenv("HEP_SM_BUDGET", "4", 1);
  hepConfig_t config = valid_config(), resolved;
  config.dispatch_blocks = 5;
  const std::string sentence = resolve_config(&config, kRanks, &resolved).message();
  EXPECT_NE(sentence.find("config field dispatch_blocks is 5"), std::string::npos) << sentence;
  EXPECT_NE(sentence.find("HEP_SM_BUDGET, 4"), std::string::npos) << sentence;
}

TEST_F(Config, AFailureLeavesTheOutputUntouched) {
  hepConfig_t config = valid_config();
  config.hidden = 9;
  hepConfig_t resolved{};
  resolved.hidden = 1234;
  EXPECT_FALSE(resolve_config(&config, kRanks, &resolved).ok());
  EXPECT_EQ(resolved.hidden, 1234);
}

TEST_F(Config, ElementsHaveTheSizeOfTheirType) {
  EXPECT_EQ(element_bytes(hepTypeBfloat16), 2);
  EXPECT_EQ(element_bytes(hepTypeFloat16), 2);
  EXPECT_EQ(element_bytes(hepTypeFloat32), 4);
  EXPECT_EQ(element_bytes(hepTypeFloat8E4M3), 1);
  EXPECT_EQ(element_bytes(hepTypeFloat8E5M2), 1);
  EXPECT_EQ(element_bytes(hepTypeBytes), 1);
  EXPECT_EQ(element_bytes(hepTypeDefault), 0);
  EXPECT_EQ(element_bytes(7), 0);
}

// -------------------------------------------------------------------------------- difference

TEST_F(Config, EqualConfigsDoNotDiffer) {
  EXPECT_EQ(config_difference(resolved_config(), resolved_config()), "");
}

void ignore_message(hepLogLevel_t, const char*, void*) {}

TEST_F(Config, LogCallbacksMayDiffer) {
  hepConfig_t other = resolved_config();
  other.log = ignore_message;
  other.log_context = &other;
  EXPECT_EQ(config_difference(resolved_config(), other), "");
}

TEST_F(Config, EveryOtherFieldThatDiffersIsNamedWithBothValues) {
  std::set<std::string> names;
  for (size_t word = offsetof(hepConfig_t, backend); word < sizeof(hepConfig_t); word += 4) {
    const size_t after_log = offsetof(hepConfig_t, log_context) + sizeof(void*);
    const size_t padding = offsetof(hepConfig_t, combine_blocks) + sizeof(int32_t);
    if (word >= padding && word < after_log) continue;
    hepConfig_t a{}, b{};
    const int32_t one = 11, two = 22;
    std::memcpy(reinterpret_cast<char*>(&a) + word, &one, sizeof one);
    std::memcpy(reinterpret_cast<char*>(&b) + word, &two, sizeof two);
    const std::string difference = config_difference(a, b);
    if (word == offsetof(hepConfig_t, heap_bytes) + 4)  // the upper half of 64 bits
      EXPECT_EQ(difference, "heap_bytes (47244640256 and 94489280512)");
    else if (word == offsetof(hepConfig_t, network_bytes) + 4)
      EXPECT_EQ(difference, "network_bytes (47244640256 and 94489280512)");
    else
      EXPECT_TRUE(names.insert(difference).second &&
                  difference.find(" (11 and 22)") != std::string::npos)
          << "the word at byte " << word << ": " << difference;
  }
  EXPECT_EQ(names.count("hidden (11 and 22)"), 1u);
}

TEST_F(Config, EachFieldIsReadAndWrittenWhereItLies) {
  hepConfig_t config{};
  for (const Field& field : kFields) {
    if (field.kind == Field::Kind::kPointer) continue;
    const int64_t upper_half = field.bytes == sizeof(int32_t) ? 0 : int64_t{5} << 33;
    const int64_t value = upper_half + static_cast<int64_t>(field.offset);
    set_field(field, value, &config);
    EXPECT_EQ(value_of(field, config), value) << field.name;
  }
  EXPECT_EQ(config.network_bytes,
            (int64_t{5} << 33) + static_cast<int64_t>(offsetof(hepConfig_t, network_bytes)));
  EXPECT_EQ(config.backend, static_cast<int32_t>(offsetof(hepConfig_t, backend)));
  EXPECT_EQ(config.init_timeout_ms, static_cast<int32_t>(offsetof(hepConfig_t, init_timeout_ms)));
}

}  // namespace
}  // namespace hep
