// SPDX-License-Identifier: Apache-2.0
// Rings between a loader warp and the warps that take what it brings: every byte comes to its
// place, in order, in rings of any depth.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/kernels/common/ring.cuh"
#include "device.h"

namespace {

using device_test::Array;
using hep::Cursor;
using hep::kArrivingWarpLanes;
using hep::kWarpSize;
using hep::Producer;
using hep::Ring;
using hep::warp_index;
using hep::warp_lane;
using hep::WarpProducer;
namespace ptx = hep::ptx;

// What a stage holds: bytes of the source, and where they go in the target. Multiples of 16.
struct Piece {
  uint32_t from, to, bytes;
  uint32_t number;
};
constexpr uint32_t kEnd = UINT32_MAX;

// Memory of the tests, and the pieces that each block moves.
struct Move {
  const char* source;
  char* target;
  const Piece* pieces;  // [blocks][count]
  int count;
  int depth, stage_bytes;  // of the ring

  __device__ const Piece* own_pieces() const { return pieces + blockIdx.x * count; }
  __device__ Ring<Piece> ring(char* shared) const {
    return {shared, shared + depth * stage_bytes, depth, stage_bytes};
  }
  int shared_bytes() const { return depth * stage_bytes + Ring<Piece>::control_bytes(depth); }
};

constexpr int kBlocks = 6;
constexpr int kSourceBytes = 1 << 18;
constexpr char kPoison = 0x5b;

// What is moved, and what the target is afterwards.
struct Plan {
  Plan(int count, int stage_bytes) : source(kSourceBytes) {
    std::mt19937 random(count * 100000 + stage_bytes);
    const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random()) % limit; };
    for (char& byte : source) byte = static_cast<char>(random());
    for (int i = 0; i < kBlocks * count; ++i) {
      const uint32_t most = stage_bytes / 16;
      const uint32_t bytes = 16 * (below(4) == 0 ? most : below(most + 1));
      const uint32_t from = 16 * below((kSourceBytes - bytes) / 16);
      const auto to = static_cast<uint32_t>(target.size());
      pieces.push_back({from, to, bytes, static_cast<uint32_t>(i)});
      target.insert(target.end(), source.begin() + from, source.begin() + from + bytes);
      target.insert(target.end(), 16, kPoison);
    }
  }

  std::vector<char> source, target;
  std::vector<Piece> pieces;
};

// -------------------------------------------------------------------- a producer and one storer

// Pieces with even numbers are loaded by one lane, the others by all.
__device__ void load_piece(const Move& move, const Piece& piece, Producer<Piece>& producer) {
  const char* from = move.source + piece.from;
  if (piece.number % 2 == 0) {
    if (warp_lane() == 0) {
      producer.acquire(piece, piece.bytes);
      if (piece.bytes > 0) producer.load(0, from, piece.bytes);
    }
  } else {
    producer.wait();
    if (warp_lane() == 0) producer.describe(piece, piece.bytes);
    __syncwarp();
    for (uint32_t i = warp_lane() * 16; i < piece.bytes; i += kWarpSize * 16)
      producer.load(i, from + i, 16);
  }
  producer.advance();
}

template <int kInFlight>
__device__ void store_pieces(const Move& move, const Ring<Piece>& ring) {
  hep::DelayedRelease<kInFlight> release;
  for (Cursor cursor;; cursor.advance(ring.depth)) {
    hep::wait_phase(&ring.full[cursor.stage], cursor.parity);
    const Piece piece = ring.items[cursor.stage];
    if (piece.number == kEnd) break;
    if (warp_lane() == 0 && piece.bytes > 0)
      ptx::bulk_store(move.target + piece.to, ring.stage(cursor.stage), piece.bytes);
    ptx::bulk_commit();
    release.stored(ring);
  }
  ptx::bulk_wait<0>();
}

template <int kInFlight>
__global__ void one_storer_kernel(const __grid_constant__ Move move) {
  extern __shared__ __align__(hep::kStageAlignment) char shared[];
  const Ring<Piece> ring = move.ring(shared);
  ring.initialize(kArrivingWarpLanes, {warp_index(), 2});
  __syncthreads();
  if (warp_index() != 0) return store_pieces<kInFlight>(move, ring);
  Producer<Piece> producer{ring, {}};
  for (int i = 0; i < move.count; ++i) load_piece(move, move.own_pieces()[i], producer);
  if (warp_lane() == 0) producer.acquire({0, 0, 0, kEnd}, 0);
}

template <int kInFlight>
void expect_stored(int count, int depth, int stage_bytes) {
  SCOPED_TRACE(std::to_string(count) + " pieces, " + std::to_string(kInFlight) + " in flight, " +
               std::to_string(depth) + " stages of " + std::to_string(stage_bytes) + " bytes");
  const Plan plan(count, stage_bytes);
  const Array<char> source(plan.source);
  const Array<char> target(std::vector<char>(plan.target.size(), kPoison));
  const Array<Piece> pieces(plan.pieces);
  const Move move{source.data(), target.data(), pieces.data(), count, depth, stage_bytes};
  one_storer_kernel<kInFlight><<<kBlocks, 2 * kWarpSize, move.shared_bytes()>>>(move);
  device_test::expect_done();
  EXPECT_TRUE(target.values() == plan.target);
}

template <int kInFlight>
void expect_stored() {
  for (const int stage_bytes : {128, 1024, 2048})
    for (const int depth : {kInFlight + 1, kInFlight + 2, 17})
      for (const int count : {1, depth, 6 * depth + 1})
        expect_stored<kInFlight>(count, depth, stage_bytes);
}

TEST(Ring, BringsEveryPieceToItsPlaceWhateverItsDepth) {
  expect_stored<1>();
  expect_stored<2>();
  expect_stored<4>();
}

// ------------------------------------------------------- lanes that produce, and several consumers

constexpr int kConsumers = 3;

// The lanes that have a piece of the 32 from `first` on: about three in four.
__host__ __device__ bool is_chosen(uint32_t number) { return (number * 2654435761u) >> 16 & 3; }

__device__ void load_lanes(const Move& move, const Ring<Piece>& ring) {
  WarpProducer<Piece> producer{ring, {}};
  for (int first = 0; first < move.count; first += kWarpSize) {
    const int i = first + warp_lane();
    const Piece piece = i < move.count ? move.own_pieces()[i] : Piece{};
    const bool chosen = i < move.count && is_chosen(piece.number);
    producer.load(__ballot_sync(hep::kFullWarp, chosen), piece, move.source + piece.from,
                  piece.bytes);
  }
  producer.load(1, {0, 0, 0, kEnd}, nullptr, 0);
}

// Each consumer warp takes every third vector of a stage. The first notes the order of the pieces.
__device__ void take_pieces(const Move& move, const Ring<Piece>& ring, uint32_t* order) {
  const uint32_t consumer = warp_index() - 1;
  for (Cursor cursor;; cursor.advance(ring.depth)) {
    hep::wait_phase(&ring.full[cursor.stage], cursor.parity);
    const Piece piece = ring.items[cursor.stage];
    if (piece.number == kEnd) return;
    for (uint32_t vector = consumer + kConsumers * warp_lane(); vector < piece.bytes / 16;
         vector += kConsumers * kWarpSize)
      *reinterpret_cast<uint4*>(move.target + piece.to + vector * 16) =
          ptx::ld_shared(ring.stage(cursor.stage) + vector * 16);
    if (consumer == 0 && warp_lane() == 0) *order++ = piece.number;
    __syncwarp();
    if (warp_lane() < kArrivingWarpLanes) ptx::mbarrier_arrive(&ring.empty[cursor.stage]);
  }
}

// order: [blocks][count]
__global__ void consumers_kernel(const __grid_constant__ Move move, uint32_t* order) {
  extern __shared__ __align__(hep::kStageAlignment) char shared[];
  const Ring<Piece> ring = move.ring(shared);
  ring.initialize(kConsumers * kArrivingWarpLanes, {warp_index(), 1 + kConsumers});
  __syncthreads();
  if (warp_index() == 0)
    load_lanes(move, ring);
  else
    take_pieces(move, ring, order + blockIdx.x * move.count);
}

void expect_taken(int count, int depth, int stage_bytes) {
  SCOPED_TRACE(std::to_string(count) + " pieces, " + std::to_string(depth) + " stages of " +
               std::to_string(stage_bytes) + " bytes");
  Plan plan(count, stage_bytes);
  std::vector<uint32_t> expected_order(plan.pieces.size(), kEnd);
  for (int block = 0; block < kBlocks; ++block) {
    uint32_t* next = &expected_order[block * count];
    for (int i = block * count; i < (block + 1) * count; ++i) {
      const Piece& piece = plan.pieces[i];
      if (is_chosen(piece.number))
        *next++ = piece.number;
      else
        std::memset(&plan.target[piece.to], kPoison, piece.bytes);
    }
  }
  const Array<char> source(plan.source);
  const Array<char> target(std::vector<char>(plan.target.size(), kPoison));
  const Array<Piece> pieces(plan.pieces);
  const Array<uint32_t> order(std::vector<uint32_t>(plan.pieces.size(), kEnd));
  const Move move{source.data(), target.data(), pieces.data(), count, depth, stage_bytes};
  consumers_kernel<<<kBlocks, (1 + kConsumers) * kWarpSize, move.shared_bytes()>>>(move,
                                                                                   order.data());
  device_test::expect_done();
  EXPECT_TRUE(target.values() == plan.target);
  EXPECT_EQ(order.values(), expected_order);
}

TEST(Ring, LanesFillItInTheirOrderAndAllConsumersSeeEveryStage) {
  for (const int stage_bytes : {128, 1024, 2048})
    for (const int depth : {1, 2, 5, 17})
      for (const int count : {1, 32, 333}) expect_taken(count, depth, stage_bytes);
}

// ---------------------------------------------------------------------------------- bounded waits

constexpr uint64_t kShortWaitNs = 3000000;
constexpr int kWaitingWarp = 2, kWaitingLane = 5;

// One thread of block 1 waits for an arrival that never comes.
__global__ void wait_for_nobody_kernel() {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) ptx::mbarrier_init(&barrier, 1);
  __syncthreads();
  if (blockIdx.x == 1 && threadIdx.x == kWaitingWarp * kWarpSize + kWaitingLane)
    hep::wait_phase_or_trap(&barrier, 0, kShortWaitNs);
}

// Kernels print to standard error, which the test reads. The process ends without ending CUDA,
// because the trap has destroyed its context.
[[noreturn]] void run_into_the_bound() {
  dup2(STDERR_FILENO, STDOUT_FILENO);
  wait_for_nobody_kernel<<<2, 4 * kWarpSize>>>();
  const cudaError_t error = cudaDeviceSynchronize();
  std::fflush(stdout);
  _exit(error == cudaSuccess ? EXIT_SUCCESS : EXIT_FAILURE);
}

// In a process of its own.
TEST(RingDeathTest, AWaitThatDoesNotEndSaysWhereAndEndsTheKernel) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(run_into_the_bound(), testing::ExitedWithCode(EXIT_FAILURE),
              "block 1, warp 2, lane 5 has waited 3 ms for the phase of parity 0");
}

}  // namespace
