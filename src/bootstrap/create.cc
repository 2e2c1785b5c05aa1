// SPDX-License-Identifier: Apache-2.0
// Opens a rendezvous: a secret, a listening socket, and the thread that serves it.
#include <system_error>
#include <thread>

#include "blocked_signals.h"
#include "bootstrap/bootstrap.h"
#include "bootstrap/hub.h"
#include "bootstrap/unique_id.h"
#include "identity.h"
#include "log.h"
#include "net/listener.h"
#include "params.h"

namespace hep {
namespace {

// The thread owns all it needs, so that it is safe at any time of the process's end. It takes no
// signals: they are the application's.
Status start_hub(Descriptor listener, const SipKey& secret, int timeout_ms) {
  const BlockedSignals blocked;
  try {
    std::thread([listener = std::move(listener), secret, timeout_ms]() mutable {
      try {
        run_hub(std::move(listener), secret, timeout_ms);
      } catch (const std::exception& failure) {
        // Out of memory. The connections are closed by now, which tells the ranks.
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
  Rendezvous rendezvous;
  HEP_TRY(random_bytes(rendezvous.secret.data(), rendezvous.secret.size()));
  Descriptor listener;
  HEP_TRY(open_listener(reach, &listener, &rendezvous.port, &rendezvous.addresses));
  rendezvous.host = host_fingerprint(rendezvous.secret);
  const hepUniqueId_t written = write_unique_id(rendezvous);
  HEP_TRY(start_hub(std::move(listener), rendezvous.secret, static_cast<int>(timeout_ms)));
  *id = written;
  return Status();
}

}  // namespace hep
