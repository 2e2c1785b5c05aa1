// SPDX-License-Identifier: Apache-2.0
// A step that ranks take together: what a peer may say of it. A failure of a peer is a failure
// here, with a result of the library, and nothing is read past the end of a text.
#include "comm/agreement.h"

#include <vector>

#include "input.h"

namespace {

using namespace hep;

constexpr int kNumRanks = 3;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  bool peers_failed = false;
  const auto exchange = [&](const void* send, void* receive, size_t bytes) {
    std::memcpy(receive, send, bytes);
    for (int rank = 1; rank < kNumRanks; ++rank) {
      char* const message = static_cast<char*>(receive) + rank * bytes;
      int32_t result = static_cast<int8_t>(input.byte());
      if (input.byte() & 1) input.take(&result, sizeof result);
      std::memcpy(message, &result, sizeof result);
      input.take(message + sizeof result, bytes - sizeof result);
      peers_failed |= result != hepSuccess;
    }
    return Status();
  };
  const uint64_t mine = 0x0123456789abcdef;
  std::vector<uint64_t> payloads;
  const Status status = agree_over(exchange, kNumRanks, Status(), mine, &payloads);
  fuzz::require(status.ok() == !peers_failed, "a step fails if it failed on a rank");
  fuzz::require(is_result(status.result()), "the result is one of the library's");
  fuzz::require(status.message().size() < kNumRanks * sizeof(AgreementMessage<uint64_t>),
                "a sentence ends where the peer's text does");
  fuzz::require(!status.ok() || (payloads.size() == kNumRanks && payloads[0] == mine),
                "the payloads of all arrive");
  return 0;
}
