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

// Makes a Status with a sentence, formatted as by printf.
Status error(hepResult_t result, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Makes a Status whose sentence ends with the text of errno: "...: Connection refused". The result
// is hepErrorOutOfMemory if errno says so, otherwise hepErrorSystem.
Status system_error(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Returns the text of an error number of the system. If a limit was reached, the text names the
// limit and its value.
std::string system_text(int code);

// Remembers a failed status as the last error of the calling thread. Returns its result.
hepResult_t report(const Status& status);

// Does the same without a Status, so that it needs no memory.
hepResult_t report(hepResult_t result, const char* sentence) noexcept;

const char* last_error();

}  // namespace hep

#define HEP_TRY(expression)                                                           \
  do {                                                                                \
    if (::hep::Status hep_status = (expression); !hep_status.ok()) return hep_status; \
  } while (0)
