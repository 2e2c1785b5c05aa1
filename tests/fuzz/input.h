// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets share: an input that is read piece by piece, and what must hold.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace fuzz {

// Pieces past the end are zeros, or shorter than asked for.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }

  uint8_t byte() {
    uint8_t value = 0;
    take(&value, 1);
    return value;
  }

  void take(void* to, size_t count) {
    const size_t taken = std::min(count, size_);
    if (taken > 0) std::memcpy(to, data_, taken);
    data_ += taken;
    size_ -= taken;
  }

  std::string bytes(size_t count) {
    std::string text(std::min(count, size_), '\0');
    take(text.data(), text.size());
    return text;
  }

  std::string rest() { return bytes(size_); }

 private:
  const uint8_t* data_;
  size_t size_;
};

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

}  // namespace fuzz
