// SPDX-License-Identifier: Apache-2.0
#include "net/reach.h"

#include <poll.h>

#include <algorithm>
#include <string>

#include "base/identity.h"
#include "net/address.h"
#include "net/handshake.h"
#include "net/socket.h"

namespace hep {
namespace {

// Addresses that do not answer must not use up the time for those that do.
constexpr int kConnectMs = 2000;

// There is a pause between two rounds over the addresses.
constexpr int kRetryMs = 20;

}  // namespace

Status reach(const Destination& destination, int rank, int num_ranks, Deadline deadline,
             Descriptor* out, int join_ms) {
  Visitor visitor{rank, num_ranks, 0, 0};
  HEP_TRY(random_bytes(&visitor.visit, sizeof visitor.visit));
  std::string reasons;  // of the latest round that the deadline did not cut short
  do {
    std::string round;
    for (const in6_addr& address : destination.addresses) {
      Descriptor socket;
      Status attempt = connect_to(socket_address(address, destination.port),
                                  deadline.or_in(kConnectMs), &socket);
      if (!attempt.ok() && attempt.result() != hepErrorTimeout &&
          attempt.result() != hepErrorUnreachable)
        return attempt;
      visitor.remaining_ms = std::min(deadline.left_ms(), join_ms);
      if (attempt.ok())
        attempt =
            prove(socket.get(), destination.secret, visitor, deadline.or_in(kProofMs), deadline);
      if (attempt.ok()) {
        *out = std::move(socket);
        return Status();
      }
      round += (round.empty() ? "" : "; ") + address_text(address, destination.port) + ": " +
               attempt.message();
    }
    if (reasons.empty() || !deadline.expired()) reasons = std::move(round);
    ::poll(nullptr, 0, std::min(kRetryMs, deadline.remaining_ms()));
  } while (!deadline.expired());
  return Status(hepErrorTimeout, reasons);
}

}  // namespace hep
