// SPDX-License-Identifier: Apache-2.0
// Messages for the user, up to a level.
#pragma once

#include <hybridep.h>

namespace hep {

// Delivers a message in printf's manner, without a line end, to the process's callback or, if there
// is none, to standard error. Thread-safe. Messages past 1023 characters are cut.
void log_message(hepLogLevel_t level, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// From now on messages up to this level are delivered; until then those up to hepLogWarning.
// Thread-safe.
void set_log_level(hepLogLevel_t level);

// Whether messages of a level are delivered, for those that are costly to make.
bool log_enabled(hepLogLevel_t level);

// A callback that receives the process's messages, those of other communicators too, until it is
// destroyed or a later one takes its place; when the later one goes, it receives them again. Not
// called under a lock, so it may take locks of its own. Destruction waits for messages that are being
// delivered by other threads: nothing is delivered after it.
class LogCallback {
 public:
  LogCallback() = default;
  LogCallback(const LogCallback&) = delete;
  LogCallback& operator=(const LogCallback&) = delete;
  ~LogCallback();

  // Once. NULL does nothing.
  void set(hepLogCallback_t callback, void* context);

 private:
  bool is_set_ = false;
};

}  // namespace hep
