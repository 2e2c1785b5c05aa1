// SPDX-License-Identifier: Apache-2.0
// The one error idiom: a function that can fail returns a Status, and its caller checks it with
// HEP_TRY. The sentence is made where the error arises.
#pragma once

#include <hybridep.h>

#include <string>
#include <utility>

namespace hep {

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(hepResult_t result, std::string message) : result_(result), message_(std::move(message)) {}

  bool ok() const { return result_ == hepSuccess; }
  hepResult_t result() const { return result_; }
  const std::string& message() const { return message_; }

 private:
  hepResult_t result_ = hepSuccess;
  std::string message_;
};

// A Status with a sentence in printf's manner.
Status error(hepResult_t result, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The same, ending with the text of errno: "...: Connection refused". hepErrorSystem, or
// hepErrorOutOfMemory where errno says so.
Status system_error(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The text of an error number of the system. For a limit that was reached it says which, and its value.
std::string system_text(int code);

// Remembers a failed status as the calling thread's last error; returns its result.
hepResult_t report(const Status& status);

// The same without a Status, for where no memory can be had.
hepResult_t report(hepResult_t result, const char* sentence) noexcept;

const char* last_error();

}  // namespace hep

#define HEP_TRY(expression)                                                           \
  do {                                                                                \
    if (::hep::Status hep_status = (expression); !hep_status.ok()) return hep_status; \
  } while (0)
