// SPDX-License-Identifier: Apache-2.0
// The connections between processes: strangers come before the peer, and then the peer says
// anything. The strangers do not keep the peer out, and nobody waits for a peer longer than it is
// there.
#include <sys/socket.h>

#include <future>
#include <vector>

#include "input.h"
#include "net/socket.h"
#include "peers/group.h"
#include "peers/links.h"
#include "peers/message.h"

namespace {

using namespace hep;

constexpr int kPatienceMs = 20000;
constexpr int kMaxStrangers = 4;
constexpr int kMaxMessages = 20;
constexpr int kNumRanks = 3;  // of which the first is a process, and the other two are another

Deadline patience() { return Deadline::after_ms(kPatienceMs); }

// Rank 0's.
struct Ear final : PeerListener {
  void peer_left(int rank) noexcept override { end(rank); }
  void peer_lost(int rank) override { end(rank); }
  void peer_failed(const PeerFailure& failure) override {
    fuzz::require(is_peer(failure.rank) && failure.missing_rank >= -1 &&
                      failure.missing_rank < kNumRanks && failure.result != hepSuccess,
                  "only what a peer can have told arrives");
  }
  bool poll_local_failure(PeerFailure*) override { return false; }

  static bool is_peer(int rank) { return rank == 1 || rank == 2; }
  void end(int rank) {
    fuzz::require(is_peer(rank), "only peers end");
    ended[rank] = true;
  }
  bool ended[kNumRanks] = {};
};

void send(const Descriptor& socket, const std::string& bytes) {
  ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

std::vector<Descriptor> bring_strangers(const LinkAddress& address, fuzz::Input& input) {
  std::vector<Descriptor> strangers;
  const SocketAddress door = socket_address(address.addresses[0], address.port);
  for (int count = input.byte() % (kMaxStrangers + 1); count > 0; --count) {
    Descriptor socket;
    fuzz::require(connect_to(door, patience(), &socket).ok(), "a process listens");
    send(socket, input.bytes(input.byte()));
    if (input.byte() % 2 == 0) strangers.push_back(std::move(socket));
  }
  return strangers;
}

std::string message(fuzz::Input& input) {
  PeerMessage message{};
  message.magic = kMessageMagic;
  message.event = static_cast<PeerEvent>(input.byte() % 5);
  message.rank = static_cast<int8_t>(input.byte());
  message.result = static_cast<int8_t>(input.byte());
  message.missing_rank = static_cast<int8_t>(input.byte());
  message.round = input.byte() % 4;
  message.length = 4 * input.byte();
  input.take(message.content, input.byte());
  return {reinterpret_cast<const char*>(&message), sizeof message};
}

void talk(const Descriptor& link, fuzz::Input& input) {
  for (int i = 0; i < kMaxMessages && !input.empty(); ++i)
    send(link, input.byte() % 4 != 0 ? message(input) : input.bytes(input.byte()));
  ::shutdown(link.get(), SHUT_WR);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  PeerGroup group({1, 2, 2}, 0);
  Links other;
  fuzz::require(group.open().ok() && other.open().ok(), "processes listen");
  const LinkAddress own = group.address();
  auto connected = std::async(std::launch::async, [&] {
    return group.connect({own, other.address(), {}}, patience()).ok();
  });
  const std::vector<Descriptor> strangers = bring_strangers(own, input);
  const bool let_in =
      other.connect({own, other.address()}, 1, {"rank 0", "rank 1"}, patience()).ok();
  fuzz::require(connected.get() && let_in, "strangers do not keep a peer out");

  Ear ear;
  group.subscribe(0, ear, false);
  talk(other.sockets()[0], input);
  const int mine = 0x01234567;
  int all[kNumRanks], missing = -1;
  const Deadline deadline = patience();
  const Status gathered = group.all_gather(0, &mine, all, sizeof mine, deadline, &missing);
  fuzz::require(!gathered.ok() || all[0] == mine, "a rank gathers what is its own");
  fuzz::require(!deadline.expired(), "nobody waits for a peer that is gone");
  const auto peers_ended = [&] {
    const Lock lock(group.mutex());
    return ear.ended[1] && ear.ended[2];
  };
  while (!peers_ended() && !deadline.expired()) ::poll(nullptr, 0, 1);
  fuzz::require(peers_ended(), "the end of a process is the end of its ranks");
  group.unsubscribe(0);
  return 0;
}
