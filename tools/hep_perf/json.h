// SPDX-License-Identifier: Apache-2.0
// Writes JSON, value after value. The caller opens and closes objects and arrays in pairs.
#pragma once

#include <cstdio>
#include <string>
#include <type_traits>

namespace perf {

class JsonWriter {
 public:
  void open(char bracket) {
    separate();
    text_ += bracket;
    first_ = true;
    ++depth_;
  }
  void open(const std::string& key, char bracket) {
    begin_member(key);
    open(bracket);
  }
  void close(char bracket) {
    --depth_;
    if (!first_) new_line();
    text_ += bracket;
    first_ = false;
  }

  void value(const std::string& value) {
    separate();
    quote(value);
  }
  void value(const char* text) { value(std::string(text)); }
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  void value(T number) {
    separate();
    if constexpr (std::is_same_v<T, bool>) {
      text_ += number ? "true" : "false";
    } else if constexpr (std::is_floating_point_v<T>) {
      char digits[32];
      std::snprintf(digits, sizeof digits, "%.6g", static_cast<double>(number));
      text_ += digits;
    } else {
      text_ += std::to_string(number);
    }
  }

  template <typename T>
  void member(const std::string& key, const T& member_value) {
    begin_member(key);
    value(member_value);
  }

  const std::string& text() const { return text_; }

 private:
  void begin_member(const std::string& key) {
    value(key);
    text_ += ": ";
    after_key_ = true;
  }

  void separate() {
    if (!after_key_ && depth_ > 0) {
      if (!first_) text_ += ',';
      new_line();
    }
    after_key_ = first_ = false;
  }

  void new_line() { text_.append(1, '\n').append(2 * depth_, ' '); }

  void quote(const std::string& value) {
    text_ += '"';
    for (const char c : value) {
      if (c == '"' || c == '\\') {
        text_ += '\\';
        text_ += c;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        char escaped[8];
        std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
        text_ += escaped;
      } else {
        text_ += c;
      }
    }
    text_ += '"';
  }

  std::string text_;
  int depth_ = 0;
  bool first_ = true, after_key_ = false;
};

}  // namespace perf
