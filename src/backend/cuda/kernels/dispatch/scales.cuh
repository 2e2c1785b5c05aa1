// SPDX-License-Identifier: Apache-2.0
// The scales beside the rows of a dispatch: opaque bytes, moved in the widest pieces that the
// caller's arrays allow.
#pragma once

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/common/warp.cuh"
#include "protocol/at.h"
#include "protocol/output_layout.h"
#include "protocol/shape.h"

namespace hep::dispatch {

// Pieces of scales that a lane has on their way at once.
constexpr int kPiecesAtOnce = 4;

// Calls body with a piece of 16, 4, 2 or 1 bytes.
template <typename Body>
__device__ void with_piece(int bytes, Body body) {
  switch (bytes) {
    case 16: return body(uint4{});
    case 4: return body(uint32_t{});
    case 2: return body(uint16_t{});
    default: return body(uint8_t{});
  }
}

// Of dense rows of `bytes`.
__device__ inline int widest_piece(const void* rows, int bytes) {
  const uint64_t both = reinterpret_cast<uint64_t>(rows) | static_cast<uint64_t>(bytes);
  return both % 16 == 0 ? 16 : both % 4 == 0 ? 4 : 1;
}

// Copies the scales of some of this rank's tokens to the window.
__device__ inline void publish_scales(const DispatchArgs& args, uint64_t epoch, TokenRange tokens,
                                      WorkShare threads) {
  const KernelContext& context = args.context;
  const int bytes = context.shape().scale_bytes;
  with_piece(widest_piece(args.call.scales, bytes), [&](auto piece) {
    using Piece = decltype(piece);
    const Piece* scales = static_cast<const Piece*>(args.call.scales);
    const uint32_t pieces = bytes / sizeof(Piece);
    const uint32_t end = tokens.end * pieces;
    static_assert(uint64_t{kMaxTokens} * kMaxScaleBytes < uint64_t{1} << 31);
    for (uint32_t i = tokens.begin * pieces + threads.index; i < end; i += threads.count)
      at<Piece>(context.own_window(),
                context.window_layout.scales_at(epoch, i / pieces))[i % pieces] = scales[i];
  });
}

// Where a source has brought those of a token.
__device__ inline const char* published_scales(const KernelContext& context, int source,
                                               uint64_t epoch, uint32_t token) {
  return at<char>(context.windows[source], context.window_layout.scales_at(epoch, token));
}

// How row_scales is cut into pieces.
struct ScalePieces {
  int bytes;     // of a piece; in column-major an element
  int count;     // a row
  int64_t step;  // from one of a row's to the next, in pieces

  __device__ explicit ScalePieces(const DispatchArgs& args) {
    const DispatchCall& call = args.call;
    const int row_bytes = args.context.shape().scale_bytes;
    const bool row_major = call.row_scales_stride == 0;
    bytes = row_major ? widest_piece(call.row_scales, row_bytes) : call.scale_element_bytes;
    count = row_bytes / bytes;
    step = row_major ? 1 : call.row_scales_stride;
  }

  // The first of the row at a place.
  __device__ int64_t first(const DispatchCall& call, int64_t place) const {
    if (call.row_scales_stride == 0) return place * count;
    return scale_element(call.layout, call.capacity, count, call.row_scales_stride, place, 0);
  }
};

// Brings the scales of the rows that a warp handles at once to their places. `from` is where those
// of the lane's row lie, `place` the lane's place or kDropped; the first `copies` lanes of each
// group have one. Neighbouring lanes write to neighbouring addresses. By all lanes.
template <typename Piece>
__device__ void forward_pieces(const DispatchArgs& args, const SelectionWarpLanes& lanes,
                               const ScalePieces& pieces, const char* from, int64_t place,
                               int copies) {
  const bool row_major = args.call.row_scales_stride == 0;
  const int64_t first = place == kDropped ? kDropped : pieces.first(args.call, place);
  const uint32_t count = pieces.count, total = lanes.groups * count;
  struct Position {
    uint32_t lane, piece;  // the first lane of the row
    bool valid;
  };
  const uint32_t inner = row_major ? count : lanes.groups;
  const Divisor by_inner(inner);
  static_assert(kWarpSize * kMaxScaleBytes <= Divisor::kLimit - kPiecesAtOnce * kWarpSize);
  const auto position = [&](uint32_t index) {
    const uint32_t high = by_inner(index), low = index - high * inner;
    return Position{(row_major ? high : low) * args.top_k, row_major ? low : high, index < total};
  };
  for (uint32_t base = warp_lane(); base - warp_lane() < total; base += kPiecesAtOnce * kWarpSize) {
    // Pieces begin as zeros: for undefined ones ptxas takes up to 16 registers more, and spills.
    Piece loaded[kPiecesAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kPiecesAtOnce; ++j) {
      const Position where = position(base + j * kWarpSize);
      const auto row = reinterpret_cast<const Piece*>(
          __shfl_sync(kFullWarp, reinterpret_cast<uint64_t>(from), where.lane));
      if (where.valid && row != nullptr) loaded[j] = __ldcg(row + where.piece);
    }
#pragma unroll
    for (int j = 0; j < kPiecesAtOnce; ++j) {
      const Position where = position(base + j * kWarpSize);
      for (int copy = 0; copy < copies; ++copy) {
        const int64_t to = __shfl_sync(kFullWarp, first, where.lane + copy);
        if (where.valid && to != kDropped)
          static_cast<Piece*>(args.call.row_scales)[to + where.piece * pieces.step] = loaded[j];
      }
    }
  }
}

__device__ inline void forward_scales(const DispatchArgs& args, const SelectionWarpLanes& lanes,
                                      const char* from, int64_t place, int copies) {
  const ScalePieces pieces(args);
  with_piece(pieces.bytes, [&](auto piece) {
    forward_pieces<decltype(piece)>(args, lanes, pieces, from, place, copies);
  });
}

// By one thread.
__device__ inline void zero_scales(const DispatchArgs& args, int64_t place) {
  const ScalePieces pieces(args);
  with_piece(pieces.bytes, [&](auto piece) {
    using Piece = decltype(piece);
    Piece* to = static_cast<Piece*>(args.call.row_scales) + pieces.first(args.call, place);
    for (int i = 0; i < pieces.count; ++i) to[i * pieces.step] = Piece{};
  });
}

}  // namespace hep::dispatch
