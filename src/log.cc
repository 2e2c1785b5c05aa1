// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <cstdarg>
#include <cstdio>
#include <mutex>

#include "params.h"

namespace hep {
namespace {

struct Sink {
  hepLogCallback_t callback;
  void* context;
};

std::mutex sink_mutex;
Sink current_sink = {nullptr, nullptr};

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
  Sink sink;
  {
    const std::lock_guard<std::mutex> lock(sink_mutex);
    sink = current_sink;
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

void set_log_callback(hepLogCallback_t callback, void* context) {
  const std::lock_guard<std::mutex> lock(sink_mutex);
  current_sink = {callback, context};
}

void clear_log_callback(hepLogCallback_t callback, void* context) {
  const std::lock_guard<std::mutex> lock(sink_mutex);
  if (current_sink.callback == callback && current_sink.context == context)
    current_sink = {nullptr, nullptr};
}

}  // namespace hep
