// SPDX-License-Identifier: Apache-2.0
// A config that breaks no rule, and its resolved form, for tests of what is made of it.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <stdexcept>

#include "config/config.h"
#include "config/settings.h"

namespace hep {

constexpr int kRanks = 4;

inline hepConfig_t valid_config() {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.max_tokens = 4096;
  config.hidden = 7168;
  config.num_experts = 32;
  return config;
}

inline hepConfig_t resolved_config(const hepConfig_t& config = valid_config(),
                                   int num_ranks = kRanks) {
  hepConfig_t resolved{};
  const Status status = resolve_config(&config, num_ranks, &resolved);
  EXPECT_TRUE(status.ok()) << status.message();
  if (!status.ok()) throw std::runtime_error("the test's own config is wrong");
  return resolved;
}

// Settings of the environment would change the outcome.
class Config : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const Setting& setting : settings_table()) unsetenv(setting.name);
  }
};

}  // namespace hep
