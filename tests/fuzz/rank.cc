// SPDX-License-Identifier: Apache-2.0
// The rank's end of the bootstrap: what a hub, or something else in its place, may answer.
#include <sys/socket.h>

#include <vector>

#include "bootstrap/bootstrap.h"
#include "input.h"
#include "net/handshake.h"

namespace {

constexpr int kDeadlineMs = 5000;

hep::Deadline deadline() { return hep::Deadline::after_ms(kDeadlineMs); }

void gather(hep::Descriptor socket, int num_ranks, size_t bytes) {
  hep::Bootstrap bootstrap(std::move(socket), 0, num_ranks);
  bool failed = false;
  for (int step = 0; step < 3; ++step) {
    const std::vector<char> mine(bytes);
    std::vector<char> all(bytes * num_ranks);
    const bool ok = bootstrap.all_gather(mine.data(), all.data(), bytes, "phase", deadline()).ok();
    fuzz::require(!(failed && ok), "a bootstrap that has failed stays so");
    failed = !ok;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t choice = input.byte();
  int ends[2];
  fuzz::require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0,
                "there are sockets");
  hep::Descriptor rank(ends[0]);
  const hep::Descriptor hub(ends[1]);
  const int num_ranks = 1 + choice / 2 % 8;
  const size_t bytes = input.byte();
  const std::string answer = input.rest();
  ::send(hub.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
  ::shutdown(hub.get(), SHUT_WR);

  if (choice & 1) {
    gather(std::move(rank), num_ranks, bytes);
  } else {
    const hep::SipKey secret{1, 2, 3};
    fuzz::require(
        !hep::prove(rank.get(), secret, {0, num_ranks, kDeadlineMs, 0}, deadline(), deadline())
             .ok(),
        "whoever does not know the secret is not taken for the hub");
  }
  return 0;
}
