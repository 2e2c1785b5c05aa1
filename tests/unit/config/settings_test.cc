// SPDX-License-Identifier: Apache-2.0
// The settings: what the environment may say, and what it overrides.
#include "config/settings.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>

#include "base/log.h"

namespace hep {
namespace {

// Every test begins with an environment without settings.
class Params : public ::testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override { clear(); }

  static void clear() {
    for (const Setting& setting : settings_table()) unsetenv(setting.name);
  }
  static void set(const char* name, const char* text) { setenv(name, text, 1); }

  hepConfig_t config_ = HEP_CONFIG_INITIALIZER;
};

TEST_F(Params, EverySettingOfTheSpecificationExists) {
  std::set<std::string> names;
  for (const Setting& setting : settings_table()) names.insert(setting.name);
  const std::set<std::string> expected = {"HEP_BACKEND",
                                          "HEP_TIMEOUT_MS",
                                          "HEP_INIT_TIMEOUT_MS",
                                          "HEP_NETWORK_BYTES",
                                          "HEP_SM_BUDGET",
                                          "HEP_LANES",
                                          "HEP_DOMAIN_SIZE",
                                          "HEP_ROUTING_THREADS",
                                          "HEP_ROUTING_BLOCKS",
                                          "HEP_DISPATCH_STAGES",
                                          "HEP_DISPATCH_BLOCKS",
                                          "HEP_COMBINE_LOAD_STAGES",
                                          "HEP_COMBINE_STORE_STAGES",
                                          "HEP_COMBINE_BLOCKS",
                                          "HEP_LOW_LATENCY_BLOCKS",
                                          "HEP_HOST_ISA",
                                          "HEP_LOG",
                                          "HEP_MEMORY",
                                          "HEP_RENDEZVOUS_ADDRESS",
                                          "HEP_RENDEZVOUS_TIMEOUT_MS",
                                          "HEP_NETWORK",
                                          "HEP_NETWORK_INTERFACE",
                                          "HEP_NETWORK_NICS",
                                          "HEP_NETWORK_POLL_US",
                                          "HEP_NETWORK_LIBRARY",
                                          "HEP_NCCL_LIBRARY"};
  EXPECT_EQ(names, expected);
}

TEST_F(Params, EverySettingIsDocumented) {
  for (const Setting& setting : settings_table()) {
    EXPECT_NE(std::string(setting.documentation), "") << setting.name;
    EXPECT_NE(setting_range(setting), "") << setting.name;
    EXPECT_NE(setting_default(setting), "") << setting.name;
  }
}

TEST_F(Params, TextIsTheVariablesValueAndEmptyIfUnset) {
  EXPECT_EQ(setting_text("HEP_RENDEZVOUS_ADDRESS"), "");
  set("HEP_RENDEZVOUS_ADDRESS", "10.0.0.1");
  EXPECT_EQ(setting_text("HEP_RENDEZVOUS_ADDRESS"), "10.0.0.1");
}

TEST_F(Params, ANameOutsideTheTableIsAnInternalError) {
  set("HEP_NO_SUCH_SETTING", "7");
  EXPECT_EQ(setting_text("HEP_NO_SUCH_SETTING"), "");
  int64_t value = 0;
  EXPECT_EQ(setting_number("HEP_NO_SUCH_SETTING", &value).result(), hepErrorInternal);
  unsetenv("HEP_NO_SUCH_SETTING");
}

TEST_F(Params, ANumberThatIsUnsetEmptyOrZeroIsTheDefault) {
  int64_t value = -1;
  ASSERT_TRUE(setting_number("HEP_RENDEZVOUS_TIMEOUT_MS", &value).ok());
  EXPECT_EQ(value, 600000);
  for (const char* text : {"", "0"}) {
    set("HEP_RENDEZVOUS_TIMEOUT_MS", text);
    value = -1;
    ASSERT_TRUE(setting_number("HEP_RENDEZVOUS_TIMEOUT_MS", &value).ok());
    EXPECT_EQ(value, 600000) << '"' << text << '"';
  }
}

TEST_F(Params, ANumberIsReadAtBothEndsOfItsRange) {
  int64_t value = 0;
  set("HEP_TIMEOUT_MS", "1");
  ASSERT_TRUE(setting_number("HEP_TIMEOUT_MS", &value).ok());
  EXPECT_EQ(value, 1);
  set("HEP_TIMEOUT_MS", "3600000");
  ASSERT_TRUE(setting_number("HEP_TIMEOUT_MS", &value).ok());
  EXPECT_EQ(value, 3600000);
}

TEST_F(Params, WhatIsNoNumberInRangeIsRefusedWithNameValueAndRange) {
  for (const char* text : {"-1", "3600001", "12x", "x", " ", "1.5", "99999999999999999999"}) {
    set("HEP_TIMEOUT_MS", text);
    int64_t value = 0;
    const Status status = setting_number("HEP_TIMEOUT_MS", &value);
    EXPECT_EQ(status.result(), hepErrorInvalidArgument) << text;
    EXPECT_NE(status.message().find("HEP_TIMEOUT_MS"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("1 to 3600000"), std::string::npos) << status.message();
  }
}

TEST_F(Params, AChoiceIsTheIndexOfItsWord) {
  int64_t value = -1;
  set("HEP_MEMORY", "fabric");
  ASSERT_TRUE(setting_number("HEP_MEMORY", &value).ok());
  EXPECT_EQ(value, 3);
  set("HEP_LOG", "debug");
  ASSERT_TRUE(setting_number("HEP_LOG", &value).ok());
  EXPECT_EQ(value, hepLogDebug);
}

TEST_F(Params, AnUnknownWordIsRefusedWithAllThatAreKnown) {
  for (const char* text : {"tcp", "Auto", "auto|ipc", "1"}) {
    set("HEP_MEMORY", text);
    int64_t value = 0;
    const Status status = setting_number("HEP_MEMORY", &value);
    EXPECT_EQ(status.result(), hepErrorInvalidArgument) << text;
    for (const char* word : {"auto", "descriptor", "ipc", "fabric"})
      EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  }
}

TEST_F(Params, TheLogReceivesItsLevel) {
  set("HEP_LOG", "debug");
  apply_log_level();
  EXPECT_TRUE(log_enabled(hepLogDebug));
  set("HEP_LOG", "none");
  apply_log_level();
  EXPECT_FALSE(log_enabled(hepLogError));
  unsetenv("HEP_LOG");
  apply_log_level();
  EXPECT_TRUE(log_enabled(hepLogWarning));
  EXPECT_FALSE(log_enabled(hepLogInfo));
}

TEST_F(Params, AnUnknownLogLevelIsAWarningThatNamesTheVariable) {
  set("HEP_LOG", "loud");
  testing::internal::CaptureStderr();
  apply_log_level();
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("warning: HEP_LOG is \"loud\""), std::string::npos) << text;
}

TEST_F(Params, EachVariableOverridesItsField) {
  set("HEP_BACKEND", "host");
  set("HEP_TIMEOUT_MS", "101");
  set("HEP_INIT_TIMEOUT_MS", "103");
  set("HEP_SM_BUDGET", "102");
  set("HEP_LANES", "3");
  set("HEP_DOMAIN_SIZE", "9");
  set("HEP_ROUTING_THREADS", "128");
  set("HEP_ROUTING_BLOCKS", "5");
  set("HEP_DISPATCH_STAGES", "6");
  set("HEP_DISPATCH_BLOCKS", "7");
  set("HEP_COMBINE_LOAD_STAGES", "8");
  set("HEP_COMBINE_STORE_STAGES", "4");
  set("HEP_COMBINE_BLOCKS", "10");
  set("HEP_NETWORK_BYTES", "4294967296");
  config_.timeout_ms = 5;
  config_.hidden = 7168;
  ASSERT_TRUE(apply_environment(&config_).ok());
  EXPECT_EQ(config_.backend, hepBackendHost);
  EXPECT_EQ(config_.timeout_ms, 101);
  EXPECT_EQ(config_.init_timeout_ms, 103);
  EXPECT_EQ(config_.sm_budget, 102);
  EXPECT_EQ(config_.lanes, 3);
  EXPECT_EQ(config_.domain_size, 9);
  EXPECT_EQ(config_.routing_threads, 128);
  EXPECT_EQ(config_.routing_blocks, 5);
  EXPECT_EQ(config_.dispatch_stages, 6);
  EXPECT_EQ(config_.dispatch_blocks, 7);
  EXPECT_EQ(config_.combine_load_stages, 8);
  EXPECT_EQ(config_.combine_store_stages, 4);
  EXPECT_EQ(config_.combine_blocks, 10);
  EXPECT_EQ(config_.network_bytes, int64_t{1} << 32);
  EXPECT_EQ(config_.hidden, 7168);
}

TEST_F(Params, WithoutVariablesTheConfigStaysAsItIs) {
  config_.timeout_ms = 5;
  config_.backend = hepBackendCuda;
  ASSERT_TRUE(apply_environment(&config_).ok());
  EXPECT_EQ(config_.timeout_ms, 5);
  EXPECT_EQ(config_.backend, hepBackendCuda);
}

TEST_F(Params, ABadVariableMakesTheConfigFailAlsoIfItHasNoField) {
  for (const char* name : {"HEP_DISPATCH_STAGES", "HEP_LOG", "HEP_MEMORY"}) {
    set(name, "33");
    const Status status = apply_environment(&config_);
    EXPECT_EQ(status.result(), hepErrorInvalidArgument);
    EXPECT_NE(status.message().find(std::string(name) + " is \"33\""), std::string::npos)
        << status.message();
    unsetenv(name);
  }
}

}  // namespace
}  // namespace hep
