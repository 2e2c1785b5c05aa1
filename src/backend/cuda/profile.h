// SPDX-License-Identifier: Apache-2.0
// The numbers that scale with the hardware, a row for each device family. What is structure, such
// as the number of warps of a block, stands in blocks/. Measurements in brackets are of H200s.
#pragma once

#include <cstdint>

namespace hep {

struct Profile {
  const char* family;
  int capability_major;
  bool measured;  // not: the numbers are those of another family

  // GB/s of combine: what a block forwards, and what it reads where it reduces.
  double forward_rate, reduce_rate;

  // GB/s that bound the blocks of an operation: in and out of an SM together, and out of it alone.
  // (One rank on one GPU, 4 to 16 blocks: 95 to 103 in all, 61 out where a row has eight places.)
  double port_rate, store_rate;

  // GB/s of a GPU: what comes over its links, and what its memory reads and writes. (2 GPUs: 338 by
  // loads. One rank, 96 blocks: combine reads at 4200, dispatch to eight places writes at 3200.)
  double link_rate, memory_read_rate, memory_write_rate;

  // GB/s of BF16 that a block quantises.
  double quantize_rate;

  // Microseconds that an operation takes beside what it moves. (Fits over 256 to 8192 tokens, 2
  // GPUs; those of low latency over 128 tokens, 8 to 96 blocks.)
  double dispatch_us, combine_us, low_latency_us;

  // Microseconds that one block would take for the choices of a low-latency dispatch. (1 token, one
  // rank: 3 blocks take 12.1 us, 8 blocks 10.9, 32 blocks 11.2.)
  double choices_us;

  // Bytes that a dispatch has on their way to a GPU. More of them than the links need slow it down.
  // In the expert layouts a stage is held longer, for each of its places. (24 blocks of 15 rows of
  // 14 KiB: 409 GB/s arrive; of 6 rows: 423.)
  int64_t flat_bytes_in_flight, expert_bytes_in_flight;

  // Bytes of a stage that holds several flat rows. A source's rows mostly come from tokens that
  // follow each other, and one copy brings them all. (14 KiB rows in four copies instead of one
  // took a third longer.)
  int32_t stage_target_bytes;

  // A low-latency dispatch copies at most so many bytes a block: a copy spares the wait for the
  // readers, two microseconds and more. (2 GPUs, 230 KB a block: the copy took 4 us longer than the
  // wait.)
  int64_t copied_bytes_of_block;

  // A low-latency combine sends at most so many bytes of outputs a block: sooner than others can
  // know that they may read them. (2 GPUs, 64 rows of 14 KiB, 28 KiB a block: 15.4 us instead
  // of 17.0; 256 rows: 23 instead of 21.)
  int64_t sent_bytes_of_block;

  // Pause between polls. Without it, thousands of pollers check host memory at the same moment and
  // delay a signal that is about to arrive by about 400 us. (1000 low-latency dispatches on 2 GPUs:
  // the slowest was delayed in 23 of 85 runs; with 200 ns in 1, with 32 ns in 3; medians stayed
  // within 0.1 us.)
  uint32_t poll_pause_ns;

  // Polls between two looks at host memory, which go over PCIe. (With 64 half of the dispatches
  // came to one, and took some 90 us.)
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
  profile.port_rate = 92;
  profile.store_rate = 58;
  profile.link_rate = 338;
  profile.memory_read_rate = 4300;
  profile.memory_write_rate = 3300;
  profile.quantize_rate = 16;
  profile.dispatch_us = 14;
  profile.combine_us = 20;
  profile.low_latency_us = 11;
  profile.choices_us = 3;
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

// Not measured. A block has the same shared memory, 227 KiB, and is taken to have the same ports.
// NVLink 5 and HBM3e have the rates that are published, less the part that an H200 loses. The bytes
// in flight are the H200's: 3.4 us of that link.
constexpr Profile blackwell_profile() {
  Profile profile = h200_profile();
  profile.family = "Blackwell";
  profile.capability_major = 10;
  profile.measured = false;
  profile.link_rate = 655;
  profile.memory_read_rate *= 8000.0 / 4800;
  profile.memory_write_rate *= 8000.0 / 4800;
  return profile;
}

inline constexpr Profile kH200 = h200_profile(), kBlackwell = blackwell_profile();

// The row of a device, by the major number of its compute capability. Families without a row run
// the code for 9.0, and take the H200's.
const Profile& profile_of(int capability_major);

// The row for which device code is compiled.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1100
inline constexpr Profile kCompiledProfile = kBlackwell;
#else
inline constexpr Profile kCompiledProfile = kH200;
#endif

}  // namespace hep
