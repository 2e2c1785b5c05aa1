// SPDX-License-Identifier: Apache-2.0
// The numbers that scale with the hardware, a row for each device family. What is structure, such as the
// number of warps of a block, stands in blocks/. Measurements in brackets are of H200s.
#pragma once

#include <cstdint>

namespace hep {

struct Profile {
  const char* family;
  int capability_major;
  bool measured;  // not: the numbers are those of another family

  // GB/s of combine: what a block forwards, what it reads where it reduces, what the links take.
  double forward_rate, reduce_rate, link_rate;

  // Bytes that a dispatch has on their way to a GPU. More of them than the links need slow it down. In the
  // expert layouts a stage is held longer, for each of its places. (24 blocks of 15 rows of 14 KiB: 409 GB/s
  // arrive; of 6 rows: 423.)
  int64_t flat_bytes_in_flight, expert_bytes_in_flight;

  // Bytes of a stage that holds several flat rows. A source's rows mostly come from tokens that follow each
  // other, and one copy brings them all. (14 KiB rows in four copies instead of one took a third longer.)
  int32_t stage_target_bytes;

  // A low-latency dispatch copies at most so many bytes a block: a copy spares the wait for the readers, two
  // microseconds and more. (2 GPUs, 230 KB a block: the copy took 4 us longer than the wait.)
  int64_t copied_bytes_of_block;

  // A low-latency combine sends at most so many bytes of outputs a block: sooner than others can know that
  // they may read them. (2 GPUs, 64 rows of 14 KiB, 28 KiB a block: 15.4 us instead of 17.0; 256 rows: 23
  // instead of 21.)
  int64_t sent_bytes_of_block;

  // Pause between polls. Without it, thousands of pollers check host memory at the same moment and delay a
  // signal that is about to arrive by about 400 us. (1000 low-latency dispatches on 2 GPUs: the slowest was
  // delayed in 23 of 85 runs; with 200 ns in 1, with 32 ns in 3; medians stayed within 0.1 us.)
  uint32_t poll_pause_ns;

  // Polls between two looks at host memory, which go over PCIe. (With 64 half of the dispatches came to one,
  // and took some 90 us.)
  int32_t polls_per_look;

  // Tokens of a combine that are not worth dealing out: all pipelines begin together.
  int32_t few_tokens;
};

constexpr Profile h200_profile() {
  Profile profile{};
  profile.family = "H200";
  profile.capability_major = 9;
  profile.measured = true;
  profile.forward_rate = 41;
  profile.reduce_rate = 63;
  profile.link_rate = 344;
  profile.flat_bytes_in_flight = 2240 * 1024;
  profile.expert_bytes_in_flight = 3360 * 1024;
  profile.stage_target_bytes = 28 * 1024;
  profile.copied_bytes_of_block = 64 * 1024;
  profile.sent_bytes_of_block = 64 * 1024;
  profile.poll_pause_ns = 200;
  profile.polls_per_look = 1024;
  profile.few_tokens = 512;
  return profile;
}

// Not measured: all numbers are the H200's. A block has the same shared memory, 227 KiB; NVLink has twice the
// rate, so the rates and the bytes in flight are to be measured first.
constexpr Profile blackwell_profile() {
  Profile profile = h200_profile();
  profile.family = "Blackwell";
  profile.capability_major = 10;
  profile.measured = false;
  return profile;
}

inline constexpr Profile kH200 = h200_profile(), kBlackwell = blackwell_profile();

// The row of a device, by the major number of its compute capability. Families without a row run the code for
// 9.0, and take the H200's.
const Profile& profile_of(int capability_major);

// The row for which device code is compiled.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1100
inline constexpr Profile kCompiledProfile = kBlackwell;
#else
inline constexpr Profile kCompiledProfile = kH200;
#endif

}  // namespace hep
