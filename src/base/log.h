// SPDX-License-Identifier: Apache-2.0
// Delivers messages for the user, up to a level.
#pragma once

#include <hybridep.h>

namespace hep {

// Formats a message as printf does, without a line end. Delivers it to the process's callback, or
// to standard error if there is none. Cuts it after 1023 characters. Thread-safe.
void log_message(hepLogLevel_t level, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// Sets the level up to which messages are delivered. It is hepLogWarning at first. Thread-safe.
void set_log_level(hepLogLevel_t level);

// Returns whether messages of a level are delivered. Ask before a message that is costly to make.
bool log_enabled(hepLogLevel_t level);

// A callback for all messages of the process, also of other communicators. The callback that was
// set last receives them; when it is destroyed, the one before receives them again. The library
// calls it without a lock, so it may take locks of its own. The destructor waits for deliveries of
// other threads: nothing is delivered after it.
class LogCallback {
 public:
  LogCallback() = default;
  LogCallback(const LogCallback&) = delete;
  LogCallback& operator=(const LogCallback&) = delete;
  ~LogCallback();

  // Call this once. NULL does nothing.
  void set(hepLogCallback_t callback, void* context);

 private:
  bool is_set_ = false;
};

}  // namespace hep
