// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/unique_id.h"

#include <cstddef>
#include <cstring>

#include "base/identity.h"
#include "net/address.h"
#include "net/frames.h"

namespace hep {
namespace {

constexpr uint32_t kIdMagic = 0x48455049;

// The version is that of the frames, so that ranks with another version learn it at once. Magic,
// version and checksum keep their offsets in all versions, so that an id of another version differs
// from a damaged one.
struct Contents {
  uint32_t magic;
  uint16_t version;
  uint16_t port;
  SipKey secret;
  uint64_t host;
  uint32_t num_addresses;
  in6_addr addresses[kMaxAddresses];
  uint32_t reserved;
  uint64_t checksum;
};
static_assert(sizeof(Contents) == HEP_UNIQUE_ID_BYTES);

uint64_t checksum(const Contents& contents) {
  return siphash(contents.secret, &contents, offsetof(Contents, checksum));
}

}  // namespace

hepUniqueId_t write_unique_id(const Rendezvous& rendezvous) {
  Contents contents{};
  contents.magic = kIdMagic;
  contents.version = wire::kVersion;
  contents.port = rendezvous.port;
  contents.secret = rendezvous.secret;
  contents.host = rendezvous.host;
  for (const in6_addr& address : rendezvous.addresses) {
    if (contents.num_addresses == kMaxAddresses) break;
    contents.addresses[contents.num_addresses++] = address;
  }
  contents.checksum = checksum(contents);
  hepUniqueId_t id;
  std::memcpy(&id, &contents, sizeof id);
  return id;
}

Status read_unique_id(const hepUniqueId_t& id, Rendezvous* rendezvous) {
  Contents contents;
  std::memcpy(&contents, &id, sizeof contents);
  if (contents.magic != kIdMagic)
    return error(hepErrorInvalidArgument, "these bytes are not a unique id of this library");
  if (contents.checksum != checksum(contents))
    return error(hepErrorInvalidArgument, "the unique id was damaged on its way: wrong checksum");
  if (contents.version != wire::kVersion)
    return error(hepErrorMismatch, "the unique id has version %d, this library reads version %d",
                 contents.version, wire::kVersion);
  if (contents.num_addresses < 1 || contents.num_addresses > kMaxAddresses)
    return error(hepErrorInvalidArgument, "the unique id has %u addresses, not 1 to %zu",
                 contents.num_addresses, kMaxAddresses);
  rendezvous->addresses.assign(contents.addresses, contents.addresses + contents.num_addresses);
  rendezvous->port = contents.port;
  rendezvous->host = contents.host;
  rendezvous->secret = contents.secret;
  return Status();
}

uint64_t host_fingerprint(const SipKey& secret) {
  const uint64_t host = host_identity();
  return siphash(secret, &host, sizeof host);
}

}  // namespace hep
