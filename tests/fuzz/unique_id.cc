// SPDX-License-Identifier: Apache-2.0
// Unique ids: 128 bytes, then one that says whether they get the checksum that belongs to them.
#include "bootstrap/unique_id.h"

#include "input.h"
#include "net/address.h"

namespace {

constexpr size_t kSecretAt = 8;
constexpr size_t kChecksumAt = HEP_UNIQUE_ID_BYTES - sizeof(uint64_t);

void correct_checksum(hepUniqueId_t* id) {
  hep::SipKey secret;
  std::memcpy(&secret, id->bytes + kSecretAt, sizeof secret);
  const uint64_t checksum = hep::siphash(secret, id->bytes, kChecksumAt);
  std::memcpy(id->bytes + kChecksumAt, &checksum, sizeof checksum);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  hepUniqueId_t id;
  std::memset(&id, 0, sizeof id);
  input.take(&id, sizeof id);
  if (input.byte() & 1) correct_checksum(&id);

  hep::Rendezvous read;
  if (!hep::read_unique_id(id, &read).ok()) return 0;
  fuzz::require(!read.addresses.empty() && read.addresses.size() <= hep::kMaxAddresses,
                "an id has 1 to 5 addresses");
  for (const in6_addr& address : read.addresses) {
    hep::is_loopback(address);
    fuzz::require(hep::socket_address(address, read.port).length > 0, "an address has a length");
    fuzz::require(!hep::address_text(address, read.port).empty(), "an address has a text");
  }
  hep::Rendezvous again;
  fuzz::require(hep::read_unique_id(hep::write_unique_id(read), &again).ok(),
                "what was read can be written and read again");
  fuzz::require(again.port == read.port && again.secret == read.secret && again.host == read.host &&
                    again.addresses.size() == read.addresses.size(),
                "it is the same again");
  return 0;
}
