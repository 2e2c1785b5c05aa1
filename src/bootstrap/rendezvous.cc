// SPDX-License-Identifier: Apache-2.0
// A rendezvous is a hub on a thread of its own, with the unique id that leads to it.
#include <exception>
#include <system_error>
#include <thread>
#include <utility>

#include "base/blocked_signals.h"
#include "base/identity.h"
#include "base/log.h"
#include "bootstrap/bootstrap.h"
#include "bootstrap/hub.h"
#include "bootstrap/unique_id.h"
#include "config/settings.h"
#include "net/address.h"
#include "net/listener.h"

namespace hep {
namespace {

Status open_listener(Reach reach, Listener* out) {
  if (reach == Reach::kMachine) return listen_at_loopback(out);
  const std::string text = setting_text("HEP_RENDEZVOUS_ADDRESS");
  if (text.empty()) return listen_everywhere(out);
  in6_addr address;
  if (parse_address(text, &address)) return listen_at(address, out);
  return error(hepErrorInvalidArgument,
               "HEP_RENDEZVOUS_ADDRESS is \"%s\", but must be an IPv4 or IPv6 address of this "
               "machine",
               text.c_str());
}

// The thread owns all it needs, so that the process may end at any time. It takes no signals, which
// are the application's.
Status start_hub(Listener listener, const SipKey& secret, int timeout_ms) {
  const BlockedSignals blocked;
  try {
    std::thread([listener = std::move(listener), secret, timeout_ms]() mutable {
      try {
        run_hub(std::move(listener), secret, timeout_ms);
      } catch (const std::exception& failure) {
        // Memory has run out. The connections are closed by now, which tells the ranks.
        log_message(hepLogError, "the rendezvous ended early: %s", failure.what());
      }
    }).detach();
  } catch (const std::system_error& failure) {
    return error(hepErrorSystem, "no thread could be started for the rendezvous: %s",
                 failure.what());
  }
  return Status();
}

}  // namespace

Status create_unique_id(hepUniqueId_t* id, Reach reach) {
  int64_t timeout_ms = 0;
  HEP_TRY(setting_number("HEP_RENDEZVOUS_TIMEOUT_MS", &timeout_ms));
  HEP_TRY(read_host_identity());
  Rendezvous rendezvous;
  HEP_TRY(random_bytes(rendezvous.secret.data(), rendezvous.secret.size()));
  Listener listener;
  HEP_TRY(open_listener(reach, &listener));
  rendezvous.port = listener.port;
  rendezvous.addresses = listener.addresses;
  warn_of_addresses_left_out(listener.addresses);
  rendezvous.host = host_fingerprint(rendezvous.secret);
  const hepUniqueId_t written = write_unique_id(rendezvous);
  HEP_TRY(start_hub(std::move(listener), rendezvous.secret, static_cast<int>(timeout_ms)));
  *id = written;
  return Status();
}

}  // namespace hep
