// SPDX-License-Identifier: Apache-2.0
#include "base/status.h"

#include <sys/resource.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "base/sentence.h"

namespace hep {
namespace {

std::string format_text(const char* format, va_list arguments) {
  va_list copy;
  va_copy(copy, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, copy);
  va_end(copy);
  std::string text(length > 0 ? length : 0, '\0');
  std::vsnprintf(text.data(), text.size() + 1, format, arguments);
  return text;
}

// The buffer is fixed, so that remembering an out-of-memory error needs no memory. It has room for
// a short sentence of each rank.
thread_local char last_error_text[8192] = "";

}  // namespace

Status error(hepResult_t result, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_text(format, arguments);
  va_end(arguments);
  return Status(result, std::move(text));
}

Status system_error(const char* format, ...) {
  const int code = errno;
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_text(format, arguments);
  va_end(arguments);
  const hepResult_t result = code == ENOMEM ? hepErrorOutOfMemory : hepErrorSystem;
  return Status(result, text + ": " + system_text(code));
}

std::string system_text(int code) {
  std::string text = std::system_category().message(code);
  rlimit limit{};
  if (code == EMFILE && ::getrlimit(RLIMIT_NOFILE, &limit) == 0)
    text += " (RLIMIT_NOFILE is " + std::to_string(limit.rlim_cur) + ")";
  return text;
}

hepResult_t report(const Status& status) {
  return report(status.result(), status.message().c_str());
}

hepResult_t report(hepResult_t result, const char* sentence) noexcept {
  if (result != hepSuccess) copy_sentence(sentence, last_error_text, sizeof last_error_text);
  return result;
}

const char* last_error() { return last_error_text; }

}  // namespace hep
