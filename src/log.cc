// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <vector>

#include "params.h"

namespace hep {
namespace {

struct Sink {
  const LogCallback* owner;
  hepLogCallback_t callback;
  void* context;
};

// The latest one receives. Never destroyed: messages may come at exit.
struct Sinks {
  static Sinks& instance() {
    static Sinks* const sinks = new Sinks;
    return *sinks;
  }

  std::mutex mutex;
  std::vector<Sink> entries;
};

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
  Sink sink{};
  {
    Sinks& sinks = Sinks::instance();
    const std::lock_guard<std::mutex> lock(sinks.mutex);
    if (!sinks.entries.empty()) sink = sinks.entries.back();
  }
  if (sink.callback)
    sink.callback(level, message, sink.context);
  else
    std::fprintf(stderr, "hybridep: %s: %s\n", level_name(level), message);
}

hepLogLevel_t read_level() {
  int64_t level = hepLogWarning;
  if (const Status status = setting_number("HEP_LOG", &level); !status.ok())
    deliver(hepLogWarning, status.message().c_str());
  return static_cast<hepLogLevel_t>(level);
}

}  // namespace

bool log_enabled(hepLogLevel_t level) {
  static const hepLogLevel_t enabled = read_level();
  return level <= enabled;
}

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
  const std::lock_guard<std::mutex> lock(sinks.mutex);
  sinks.entries.push_back({this, callback, context});
}

LogCallback::~LogCallback() {
  Sinks& sinks = Sinks::instance();
  const std::lock_guard<std::mutex> lock(sinks.mutex);
  const auto mine = std::remove_if(sinks.entries.begin(), sinks.entries.end(),
                                   [this](const Sink& sink) { return sink.owner == this; });
  sinks.entries.erase(mine, sinks.entries.end());
}

}  // namespace hep
