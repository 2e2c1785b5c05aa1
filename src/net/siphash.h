// SPDX-License-Identifier: Apache-2.0
// SipHash-2-4, a keyed hash for short messages (J.-P. Aumasson and D. J. Bernstein, "SipHash: a
// fast short-input PRF", 2012), written from section 2 of the paper.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hep {

using SipKey = std::array<uint8_t, 16>;

namespace siphash_detail {

constexpr uint64_t rotate_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

struct State {
  uint64_t v0, v1, v2, v3;

  void round() {
    v0 += v1;
    v2 += v3;
    v1 = rotate_left(v1, 13) ^ v0;
    v3 = rotate_left(v3, 16) ^ v2;
    v0 = rotate_left(v0, 32);
    v2 += v1;
    v0 += v3;
    v1 = rotate_left(v1, 17) ^ v2;
    v3 = rotate_left(v3, 21) ^ v0;
    v2 = rotate_left(v2, 32);
  }

  void compress(uint64_t word) {
    v3 ^= word;
    round();
    round();
    v0 ^= word;
  }
};

// Reads at most 8 bytes as a little-endian number.
inline uint64_t load_word(const uint8_t* bytes, size_t count) {
  uint64_t word = 0;
  for (size_t i = 0; i < count; ++i) word |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return word;
}

}  // namespace siphash_detail

inline uint64_t siphash(const SipKey& key, const void* data, size_t size) {
  using siphash_detail::load_word;
  const auto* bytes = static_cast<const uint8_t*>(data);
  const uint64_t k0 = load_word(key.data(), 8), k1 = load_word(key.data() + 8, 8);
  siphash_detail::State state{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d,
                              k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573};

  const size_t tail = size % 8;
  for (size_t i = 0; i + 8 <= size; i += 8) state.compress(load_word(bytes + i, 8));
  state.compress(load_word(bytes + (size - tail), tail) | static_cast<uint64_t>(size & 0xff) << 56);

  state.v2 ^= 0xff;
  for (int i = 0; i < 4; ++i) state.round();
  return state.v0 ^ state.v1 ^ state.v2 ^ state.v3;
}

}  // namespace hep
