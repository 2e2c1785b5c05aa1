// SPDX-License-Identifier: Apache-2.0
// One source for all instruction sets: loops without branches, which the compiler vectorises for
// the target of the function that they are inlined into.
#include "backend/host/row_arithmetic.h"

#include <algorithm>
#include <cstring>

#include "config/settings.h"
#include "protocol/quantization.h"

#define HEP_INLINE inline __attribute__((always_inline))

namespace hep {
namespace {

// Columns that are summed at a time: the sums stay in the L1 cache.
constexpr int kTile = 512;

constexpr uint32_t kSign = 0x80000000;
constexpr uint32_t kInfinity = 0x7f800000;

HEP_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

HEP_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds a magnitude to a format of fewer bits, with its denormal numbers, as if exponents had no
// end. A sum with a power of two whose last place is the smallest denormal number rounds to it.
template <int kMantissaBits, int kBias>
HEP_INLINE uint32_t narrow(uint32_t magnitude) {
  constexpr int kDropped = 23 - kMantissaBits;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << 23;
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(128 - kBias) << 23;
  constexpr uint32_t kLastPlace = static_cast<uint32_t>(128 - kBias + kDropped) << 23;
  const uint32_t odd = (magnitude >> kDropped) & 1;
  const uint32_t normal = (magnitude - kRebias + (1u << (kDropped - 1)) - 1 + odd) >> kDropped;
  const uint32_t denormal = bits_of(float_of(magnitude) + float_of(kLastPlace)) - kLastPlace;
  return magnitude < kSmallestNormal ? denormal : normal;
}

struct Bfloat16 {
  using Bits = uint16_t;
  static HEP_INLINE float load(Bits bits) { return float_of(static_cast<uint32_t>(bits) << 16); }
  static HEP_INLINE Bits store(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<Bits>((bits & ~kSign) > kInfinity ? 0x7fff : rounded);
  }
};

struct Float16 {
  using Bits = uint16_t;
  static HEP_INLINE float load(Bits bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
    // Exponents in the range of FP32 make denormal numbers normal, too.
    const uint32_t number = bits_of(float_of(magnitude) * 0x1p112f);
    constexpr uint32_t kOwnInfinity = 0x7c00 << 13;
    return float_of(sign | (magnitude >= kOwnInfinity ? kInfinity | magnitude : number));
  }
  static HEP_INLINE Bits store(float value) {
    const uint32_t magnitude = bits_of(value) & ~kSign;
    const uint32_t number = std::min<uint32_t>(narrow<10, 15>(magnitude), 0x7c00);
    const uint32_t sign = (bits_of(value) & kSign) >> 16;
    return static_cast<Bits>(magnitude > kInfinity ? 0x7fff : sign | number);
  }
};

struct Float32 {
  using Bits = uint32_t;
  static HEP_INLINE float load(Bits bits) { return float_of(bits); }
  static HEP_INLINE Bits store(float value) {
    const uint32_t bits = bits_of(value);
    return (bits & ~kSign) > kInfinity ? 0x7fffffff : bits;
  }
};

HEP_INLINE uint8_t to_e4m3(float value) {
  const uint32_t magnitude = bits_of(value) & ~kSign;
  const uint32_t number = std::min<uint32_t>(narrow<3, 7>(magnitude), 0x7e);
  const uint32_t sign = (bits_of(value) & kSign) >> 24;
  return static_cast<uint8_t>(magnitude > kInfinity ? 0x7f : sign | number);
}

template <typename From, typename To>
HEP_INLINE void sum_tile(const WeightedRow* rows, int count, int begin, int columns, void* to) {
  using FromBits = typename From::Bits;
  using ToBits = typename To::Bits;
  float sums[kTile];
  for (int i = 0; i < count; ++i) {
    const FromBits* __restrict row = static_cast<const FromBits*>(rows[i].row) + begin;
    const float weight = rows[i].weight;
    if (i == 0) {
      for (int h = 0; h < columns; ++h) sums[h] = weight * From::load(row[h]);
    } else {
      for (int h = 0; h < columns; ++h)
        sums[h] = __builtin_fmaf(weight, From::load(row[h]), sums[h]);
    }
  }
  ToBits* __restrict out = static_cast<ToBits*>(to) + begin;
  for (int h = 0; h < columns; ++h) out[h] = To::store(sums[h]);
}

template <typename From, typename To>
HEP_INLINE void sum_row(const WeightedRow* rows, int count, int columns, void* to) {
  if (count == 0) {
    std::memset(to, 0, columns * sizeof(typename To::Bits));
    return;
  }
  for (int begin = 0; begin < columns; begin += kTile)
    sum_tile<From, To>(rows, count, begin, std::min(kTile, columns - begin), to);
}

HEP_INLINE float scale_of(const uint16_t* x, int count) {
  constexpr int kNotFinite = 0x7f80;
  int largest = 0;  // bits, which are in the order of their magnitudes
  for (int i = 0; i < count; ++i) {
    const int magnitude = x[i] & 0x7fff;
    largest = std::max(largest, magnitude < kNotFinite ? magnitude : 0);
  }
  return largest == 0 ? 1.0f : Bfloat16::load(static_cast<uint16_t>(largest)) / kLargestE4m3;
}

HEP_INLINE void quantize(const uint16_t* __restrict x, int hidden, int32_t quantize,
                         uint8_t* __restrict row, char* scales, int scale_bytes) {
  std::memset(scales, 0, scale_bytes);
  for (int begin = 0; begin < hidden; begin += kQuantizationBlock) {
    const int end = std::min(hidden, begin + kQuantizationBlock);
    const int block = begin / kQuantizationBlock;
    float scale = scale_of(x + begin, end - begin);
    if (quantize == hepQuantizeUe8m0) {
      const uint32_t exponent = exponent_above(bits_of(scale));
      scale = float_of(power_of_two_bits(exponent));
      scales[block] = static_cast<char>(exponent);
    } else {
      std::memcpy(scales + block * sizeof scale, &scale, sizeof scale);
    }
    for (int h = begin; h < end; ++h) row[h] = to_e4m3(Bfloat16::load(x[h]) / scale);
  }
}

// Defines `id`, the arithmetic of an instruction set; `target` is the attribute of its functions.
#define HEP_ROW_ARITHMETIC(id, target)                                                \
  namespace id {                                                                      \
  template <typename From, typename To>                                               \
  target void sum(const WeightedRow* rows, int count, int columns, void* to) {        \
    sum_row<From, To>(rows, count, columns, to);                                      \
  }                                                                                   \
  target void quantize_row(const uint16_t* x, int hidden, int32_t type, uint8_t* row, \
                           char* scales, int scale_bytes) {                           \
    quantize(x, hidden, type, row, scales, scale_bytes);                              \
  }                                                                                   \
  constexpr RowArithmetic kArithmetic = {                                             \
      #id,                                                                            \
      {{sum<Bfloat16, Bfloat16>, sum<Bfloat16, Float16>, sum<Bfloat16, Float32>},     \
       {sum<Float16, Bfloat16>, sum<Float16, Float16>, sum<Float16, Float32>},        \
       {sum<Float32, Bfloat16>, sum<Float32, Float16>, sum<Float32, Float32>}},       \
      quantize_row};                                                                  \
  }

// What every machine of the architecture has: on ARM this is NEON, with fma.
HEP_ROW_ARITHMETIC(plain, )
#if defined(__x86_64__)
HEP_ROW_ARITHMETIC(avx2, __attribute__((target("avx2,fma"))))
HEP_ROW_ARITHMETIC(avx512, __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl"))))
#endif

std::vector<RowArithmetic> find_arithmetics() {
  std::vector<RowArithmetic> found = {plain::kArithmetic};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) found.push_back(avx2::kArithmetic);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(avx512::kArithmetic);
#endif
  return found;
}

}  // namespace

const std::vector<RowArithmetic>& row_arithmetics() {
  static const std::vector<RowArithmetic> found = find_arithmetics();
  return found;
}

Status choose_row_arithmetic(const RowArithmetic** chosen) {
  constexpr const char* kNames[] = {"auto", "plain", "avx2", "avx512"};  // of HEP_HOST_ISA
  int64_t choice = 0;
  HEP_TRY(setting_number("HEP_HOST_ISA", &choice));
  *chosen = &row_arithmetics().back();
  if (choice == 0) return {};
  for (const RowArithmetic& arithmetic : row_arithmetics()) {
    if (std::strcmp(arithmetic.name, kNames[choice]) != 0) continue;
    *chosen = &arithmetic;
    return {};
  }
  return error(hepErrorUnsupported, "HEP_HOST_ISA is \"%s\", but this machine has no %s",
               kNames[choice], kNames[choice]);
}

}  // namespace hep
