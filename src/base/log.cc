// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <vector>

#include "base/fork.h"
#include "base/thread_annotations.h"

namespace hep {
namespace {

struct Sink {
  const LogCallback* owner;
  hepLogCallback_t callback;
  void* context;
  int deliveries = 0;  // messages on their way to it; guarded by the mutex of Sinks
};
using SharedSink = std::shared_ptr<Sink>;

// The last one receives the messages. This is never destroyed, because messages may come at exit.
struct Sinks {
  static Sinks& instance() {
    static Sinks* const sinks = new Sinks;
    return *sinks;
  }

  HeldOverForks mutex;
  std::condition_variable delivered;
  std::vector<SharedSink> entries HEP_GUARDED_BY(mutex);
};

// A message on its way to a callback. The callback stays valid as long as this lives.
class Delivery {
 public:
  Delivery() : outer_(innermost_) {
    innermost_ = this;
    Sinks& sinks = Sinks::instance();
    const Lock lock(sinks.mutex);
    if (sinks.entries.empty()) return;
    sink_ = sinks.entries.back();
    ++sink_->deliveries;
  }
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;
  ~Delivery() {
    innermost_ = outer_;
    if (sink_ == nullptr) return;
    Sinks& sinks = Sinks::instance();
    const Lock lock(sinks.mutex);
    --sink_->deliveries;
    sinks.delivered.notify_all();
  }

  const Sink* sink() const { return sink_.get(); }

  // Deliveries of the calling thread. If there are any, the thread is inside a callback.
  static int of_this_thread(const Sink& sink) {
    int count = 0;
    for (const Delivery* d = innermost_; d != nullptr; d = d->outer_) count += d->sink() == &sink;
    return count;
  }

 private:
  static thread_local const Delivery* innermost_;

  const Delivery* const outer_;
  SharedSink sink_;
};

thread_local const Delivery* Delivery::innermost_ = nullptr;

const char* level_name(hepLogLevel_t level) {
  switch (level) {
    case hepLogNone: break;
    case hepLogError: return "error";
    case hepLogWarning: return "warning";
    case hepLogInfo: return "info";
    case hepLogDebug: return "debug";
  }
  return "message";
}

void deliver(hepLogLevel_t level, const char* message) {
  const Delivery delivery;
  if (const Sink* const sink = delivery.sink())
    sink->callback(level, message, sink->context);
  else
    std::fprintf(stderr, "hybridep: %s: %s\n", level_name(level), message);
}

std::atomic<hepLogLevel_t> enabled_level{hepLogWarning};

}  // namespace

void set_log_level(hepLogLevel_t level) { enabled_level = level; }

bool log_enabled(hepLogLevel_t level) { return level <= enabled_level; }

void log_message(hepLogLevel_t level, const char* format, ...) {
  if (!log_enabled(level)) return;
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  deliver(level, message);
}

void LogCallback::set(hepLogCallback_t callback, void* context) {
  if (callback == nullptr) return;
  Sinks& sinks = Sinks::instance();
  const Lock lock(sinks.mutex);
  sinks.entries.push_back(std::make_shared<Sink>(Sink{this, callback, context}));
  is_set_ = true;
}

LogCallback::~LogCallback() {
  if (!is_set_) return;  // the first use of Sinks would need memory
  Sinks& sinks = Sinks::instance();
  Lock lock(sinks.mutex);
  const auto mine = std::find_if(sinks.entries.begin(), sinks.entries.end(),
                                 [this](const SharedSink& sink) { return sink->owner == this; });
  if (mine == sinks.entries.end()) return;
  const SharedSink sink = *mine;
  sinks.entries.erase(mine);
  while (sink->deliveries != Delivery::of_this_thread(*sink)) sinks.delivered.wait(lock.native());
}

}  // namespace hep
