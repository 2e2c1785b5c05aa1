// SPDX-License-Identifier: Apache-2.0
// The calling thread's floating-point environment neither changes what the host backend computes
// nor is changed.
#include <gtest/gtest.h>
#include <hybridep.h>

#include <cfenv>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "harness/update.h"

namespace hep {
namespace {

constexpr int kHidden = 128;
using Bytes = std::vector<unsigned char>;

int bytes_of(int32_t type) { return type == hepTypeFloat32 ? 4 : 2; }

// From denormal numbers up to about 2, and signalling NaNs, as any bits in a row may be.
Bytes row_of(int32_t type) {
  Bytes row(kHidden * bytes_of(type));
  for (uint32_t h = 0; h < kHidden; ++h) {
    const uint32_t bits = h == 3 ? 0x7f810001 : 0x00400001 + 0x01234567 * h % 0x40000000;
    const auto upper = static_cast<uint16_t>(bits >> 16);
    const auto step = static_cast<uint16_t>(h == 3 ? 0x7c01 : 0x0005 + 0x0111 * h % 0x3c00);
    if (type == hepTypeFloat32)
      std::memcpy(&row[h * 4], &bits, 4);
    else
      std::memcpy(&row[h * 2], type == hepTypeFloat16 ? &step : &upper, 2);
  }
  return row;
}

// One rank with one token, which selects two experts.
class OneRank {
 public:
  explicit OneRank(int32_t type) : x_(row_of(type)) {
    hepConfig_t config = HEP_CONFIG_INITIALIZER;
    config.backend = hepBackendHost;
    config.type = config.combine_type = type;
    config.max_tokens = 1;
    config.hidden = kHidden;
    config.num_experts = config.max_top_k = 2;
    config.scale_bytes = 4;
    const int32_t experts[] = {0, 1};
    EXPECT_EQ(hepCommInitAll(&comm_, 1, nullptr, &config), hepSuccess);
    EXPECT_EQ(hepRoutingCreate(&routing_, comm_, nullptr), hepSuccess);
    EXPECT_EQ(harness::update_routing(routing_, experts, 1, 2, hepIndexInt32, nullptr), hepSuccess);
  }
  ~OneRank() {
    hepRoutingDestroy(routing_);
    hepCommDestroy(comm_);
  }

  // The weighted sum of its rows, y = x.
  Bytes combined() {
    const float weights[] = {1.25f, 0.3f};
    Bytes rows(2 * x_.size()), out(x_.size());
    hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
    dispatch.layout = hepLayoutExpertMajor;
    dispatch.x = x_.data();
    dispatch.weights = weights;
    dispatch.rows = rows.data();
    dispatch.capacity = 2;
    EXPECT_EQ(hepDispatch(routing_, &dispatch, nullptr), hepSuccess);
    hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
    combine.layout = hepLayoutExpertMajor;
    combine.weight_mode = hepWeightsDispatched;
    combine.y = rows.data();
    combine.capacity = 2;
    combine.out = out.data();
    EXPECT_EQ(hepCombine(routing_, &combine, nullptr), hepSuccess);
    return out;
  }

  // Its row in E4M3, and the scale.
  Bytes quantized() {
    Bytes result(kHidden + sizeof(float));
    Bytes row(kHidden);
    float scale = 0;
    hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
    dispatch.layout = hepLayoutFlat;
    dispatch.type = hepTypeFloat8E4M3;
    dispatch.quantize = hepQuantizeFloat32;
    dispatch.x = x_.data();
    dispatch.rows = row.data();
    dispatch.capacity = 1;
    dispatch.row_scales = &scale;
    EXPECT_EQ(hepDispatch(routing_, &dispatch, nullptr), hepSuccess);
    std::memcpy(result.data(), row.data(), kHidden);
    std::memcpy(&result[kHidden], &scale, sizeof scale);
    return result;
  }

 private:
  const Bytes x_;
  hepComm_t comm_ = nullptr;
  hepRouting_t routing_ = nullptr;
};

std::vector<Bytes> results() {
  return {OneRank(hepTypeBfloat16).combined(), OneRank(hepTypeFloat16).combined(),
          OneRank(hepTypeFloat32).combined(), OneRank(hepTypeBfloat16).quantized()};
}

// The thread's environment, with the flags that it has raised.
class FloatEnvironment : public testing::Test {
 protected:
  void SetUp() override { std::fegetenv(&before_); }
  void TearDown() override { std::fesetenv(&before_); }

  const std::vector<Bytes> expected_ = results();

 private:
  std::fenv_t before_;
};

TEST_F(FloatEnvironment, RoundingModeMakesNoDifferenceAndStays) {
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    ASSERT_EQ(std::fesetround(mode), 0);
    const std::vector<Bytes> got = results();
    EXPECT_EQ(std::fegetround(), mode);
    EXPECT_EQ(got, expected_) << mode;
  }
}

TEST_F(FloatEnvironment, NoFlagIsRaised) {
  std::feclearexcept(FE_ALL_EXCEPT);
  results();
  EXPECT_EQ(std::fetestexcept(FE_ALL_EXCEPT), 0);
}

TEST_F(FloatEnvironment, TrapsDoNotSpringAndStay) {
  constexpr int kTraps = FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW;
  std::feclearexcept(FE_ALL_EXCEPT);
  if (::feenableexcept(kTraps) == -1) GTEST_SKIP() << "this machine has no traps";
  const std::vector<Bytes> got = results();
  EXPECT_EQ(::fegetexcept(), kTraps);
  EXPECT_EQ(got, expected_);
}

#if defined(__x86_64__)
TEST_F(FloatEnvironment, FlushedDenormalsMakeNoDifferenceAndStayFlushed) {
  constexpr unsigned kFlush = 0x8000, kDenormalsAreZero = 0x0040;
  const unsigned wanted = _mm_getcsr() | kFlush | kDenormalsAreZero;
  _mm_setcsr(wanted);
  const std::vector<Bytes> got = results();
  EXPECT_EQ(_mm_getcsr() & (kFlush | kDenormalsAreZero), kFlush | kDenormalsAreZero);
  EXPECT_EQ(got, expected_);
}
#endif

}  // namespace
}  // namespace hep
