// SPDX-License-Identifier: Apache-2.0
#include "peers/links.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/identity.h"
#include "base/log.h"
#include "config/settings.h"
#include "net/doorway.h"
#include "net/reach.h"
#include "protocol/shape.h"

namespace hep {
namespace {

// Twice the processes that can come at once.
constexpr size_t kMaxStrangers = 2 * kMaxRanks;

Status reach_process(const LinkAddress& other, bool same_host, int own_process, int num_processes,
                     const std::string& name, Deadline deadline, Descriptor* out) {
  const auto count = std::min<size_t>(other.num_addresses, kMaxAddresses);
  const Destination destination{reachable({other.addresses, other.addresses + count}, same_host),
                                other.port, other.secret};
  if (destination.addresses.empty())
    return error(hepErrorSystem,
                 "no connection to the process of %s: it has no address that other machines reach",
                 name.c_str());
  const Status reached = reach(destination, own_process, num_processes, deadline, out);
  if (reached.ok()) return Status();
  return error(reached.result(), "no connection to the process of %s%s (%s)", name.c_str(),
               reached.result() == hepErrorTimeout ? " in time" : "", reached.message().c_str());
}

// Takes the connections of the processes that come after this one.
class Acceptor final : public Doorway::Keeper {
 public:
  Acceptor(const SipKey& secret, int process, std::vector<Descriptor>* sockets)
      : secret_(secret), process_(process), sockets_(*sockets) {}

  bool greet(Doorway::Stranger& stranger) override {
    return stranger.verifier.challenge(stranger.socket.get());
  }

  bool hear(Doorway::Stranger& stranger) override {
    const Verifier::Verdict verdict = stranger.verifier.read(stranger.socket.get(), secret_);
    if (verdict == Verifier::Verdict::kProved) admit(stranger);
    return verdict != Verifier::Verdict::kPending;
  }

 private:
  // A process that gave up an earlier attempt comes again, and its latest connection counts.
  void admit(Doorway::Stranger& stranger) {
    const wire::Join& join = stranger.verifier.join();
    const int num_processes = static_cast<int>(sockets_.size());
    if (join.rank > process_ && join.rank < num_processes && join.num_ranks == num_processes &&
        stranger.verifier.welcome(stranger.socket.get(), secret_))
      sockets_[join.rank] = std::move(stranger.socket);
  }

  const SipKey& secret_;
  const int process_;
  std::vector<Descriptor>& sockets_;
};

}  // namespace

Status Links::open() {
  // The setting names an address of the machine of the rendezvous, which may be another one.
  in6_addr wanted;
  const std::string text = setting_text("HEP_RENDEZVOUS_ADDRESS");
  const bool is_set = parse_address(text, &wanted);
  if (!is_set || !listen_at(wanted, &listener_).ok()) {
    if (is_set)
      log_message(hepLogWarning,
                  "HEP_RENDEZVOUS_ADDRESS %s is not an address of this machine, which listens for "
                  "other ranks at all of its addresses",
                  text.c_str());
    HEP_TRY(listen_everywhere(&listener_));
  }
  address_.port = listener_.port;
  address_.num_addresses =
      static_cast<uint16_t>(std::min(listener_.addresses.size(), kMaxAddresses));
  std::copy_n(listener_.addresses.begin(), address_.num_addresses, address_.addresses);
  address_.host = host_identity();
  return random_bytes(address_.secret.data(), address_.secret.size());
}

// Each process connects to those before it and then takes the connections of those behind it. The
// first only takes, so somebody always answers.
Status Links::connect(const std::vector<LinkAddress>& addresses, int process,
                      const std::vector<std::string>& names, Deadline deadline) {
  sockets_.resize(addresses.size());
  for (int other = 0; other < process; ++other)
    HEP_TRY(reach_process(addresses[other], addresses[other].host == address_.host, process,
                          static_cast<int>(addresses.size()), names[other], deadline,
                          &sockets_[other]));
  HEP_TRY(accept_others(process, names, deadline));
  listener_.close();
  return Status();
}

Status Links::accept_others(int process, const std::vector<std::string>& names, Deadline deadline) {
  Acceptor acceptor(address_.secret, process, &sockets_);
  Doorway doorway(listener_.socket, acceptor, kMaxStrangers);
  for (;;) {
    const auto missing = std::find_if(sockets_.begin() + process + 1, sockets_.end(),
                                      [](const Descriptor& socket) { return !socket.valid(); });
    if (missing == sockets_.end()) return Status();
    const std::string& name = names[missing - sockets_.begin()];
    if (deadline.expired())
      return error(hepErrorTimeout, "no connection from the process of %s in time", name.c_str());

    std::vector<pollfd> entries;
    doorway.watch(&entries);
    const int wait_ms = std::min(deadline.remaining_ms(), doorway.remaining_ms());
    if (::poll(entries.data(), entries.size(), wait_ms) < 0 && errno != EINTR)
      return system_error("poll failed");
    if (const Status served = doorway.serve(entries.data()); !served.ok())
      return error(served.result(), "no connection from the process of %s: %s", name.c_str(),
                   served.message().c_str());
  }
}

}  // namespace hep
