// SPDX-License-Identifier: Apache-2.0
// The addresses that a machine offers.
#include "net/listener.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/log.h"
#include "net/address.h"

namespace hep {
namespace {

void collect(hepLogLevel_t, const char* message, void* context) {
  static_cast<std::vector<std::string>*>(context)->push_back(message);
}

TEST(Addresses, ThatFindNoRoomAreNamed) {
  std::vector<std::string> messages;
  LogCallback log;
  log.set(collect, &messages);
  std::vector<in6_addr> addresses(kMaxAddresses);
  warn_of_addresses_left_out(addresses);
  EXPECT_TRUE(messages.empty());
  for (const char* text : {"10.0.0.9", "fd00::9"}) {
    addresses.emplace_back();
    ASSERT_TRUE(parse_address(text, &addresses.back()));
  }
  warn_of_addresses_left_out(addresses);
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_NE(messages[0].find("left out: 10.0.0.9, [fd00::9];"), std::string::npos) << messages[0];
}

}  // namespace
}  // namespace hep
