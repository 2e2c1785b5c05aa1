// SPDX-License-Identifier: Apache-2.0
// What lies where: the window that every rank shares with its peers, and the memory of a routing.
// The only place that knows; used by host code, host backend and kernels alike.
#pragma once

#include <hybridep.h>

#include <cstdint>

#if defined(__CUDACC__)
#define HEP_HOST_DEVICE __host__ __device__
#else
#define HEP_HOST_DEVICE
#endif

namespace hep {

constexpr int kMaxRanks = 72;
constexpr int kMaxTokens = 65536;
constexpr int kMaxTopK = 32;
constexpr int kMaxExperts = 4096;
constexpr int kMaxBlocks = 256;  // of a kernel
constexpr int kMaxLanes = 4;
constexpr int kLowLatencyLanes = 4;
constexpr int64_t kMaxRowBytes = 64 * 1024;
constexpr int kMaxScaleBytes = 16 * 1024;
constexpr int64_t kRowGranularity = 16;  // what the copy engine of an SM moves at least

// Combine signals progress by chunks of consecutive tokens of a source rank: of so many at most, and of
// fewer where the source has few tokens, so that all blocks have work. Each signal takes a microsecond and more:
// with 128 chunks instead of 32, a flat combine of 128 tokens on 2 H200s took 49 us instead of 34 with 16 blocks,
// in low-latency mode 26 instead of 23. With 64 nothing is faster.
constexpr int kMaxChunkTokens = 32;
constexpr int kWantedChunks = 32;

// Sections start at cache lines, windows at pages.
constexpr uint64_t kSectionAlignment = 256;

HEP_HOST_DEVICE constexpr uint64_t align_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

HEP_HOST_DEVICE constexpr int ceil_div(int value, int divisor) {
  return (value + divisor - 1) / divisor;
}

// Tokens of a chunk of a source that has so many tokens, as a power of two.
HEP_HOST_DEVICE constexpr int chunk_shift(int num_tokens) {
  int shift = 0;
  while (1 << shift < kMaxChunkTokens && kWantedChunks << shift < num_tokens) ++shift;
  return shift;
}
HEP_HOST_DEVICE constexpr int chunk_tokens(int num_tokens) { return 1 << chunk_shift(num_tokens); }
HEP_HOST_DEVICE constexpr int num_chunks(int num_tokens) {
  const int shift = chunk_shift(num_tokens);
  return (num_tokens + (1 << shift) - 1) >> shift;
}

// What precedes the choices of a source: see fused/exchange.cuh.
constexpr int kChoiceHeaderWords = 4;

// Words that carry the experts of a token, two each, at most.
HEP_HOST_DEVICE constexpr int choice_words(int top_k) { return ceil_div(top_k, 2); }

// The sizes of a communicator; all that the layouts depend on. Equal on all ranks.
struct Shape {
  int32_t num_ranks;
  int32_t num_experts;
  int32_t max_tokens;
  int32_t max_top_k;
  int32_t hidden;             // elements of a row
  int32_t row_bytes;          // most of a dispatched row
  int32_t partial_row_bytes;  // most of a partial sum
  int32_t scale_bytes;        // scales beside a dispatched row
  int64_t heap_bytes;
  int32_t choice_tokens;  // tokens of an update that is part of a dispatch, at most; or 0
  int32_t sets = 1;       // of what is published and of slots: operations take turns with two

  HEP_HOST_DEVICE constexpr int num_local_experts() const { return num_experts / num_ranks; }
  // From one token's scales to the next's in the window, where the copy engine can move them.
  HEP_HOST_DEVICE constexpr uint64_t scale_stride() const {
    return align_up(scale_bytes, kRowGranularity);
  }
  HEP_HOST_DEVICE constexpr int max_chunks() const {
    const int fewest = max_tokens < kWantedChunks ? max_tokens : kWantedChunks;
    const int longest = ceil_div(max_tokens, kMaxChunkTokens);
    return longest > fewest ? longest : fewest;
  }

  // Most ranks that one token can select: the slots for partial sums that it needs.
  HEP_HOST_DEVICE constexpr int max_partials() const {
    return max_top_k < num_ranks ? max_top_k : num_ranks;
  }
};

// ------------------------------------------------------------------------------------- choices

// A dispatch can update its routing in the same launch where the choices of all ranks find room in the
// shared memory of a block, beside stages for a few rows: see fused/assign.cuh. All ranks decide alike.
constexpr int kPlacingWarps = 16;
constexpr uint64_t kMaxPlaceBytes = 220 * 1024;
constexpr int kFewestStages = 4;

// Counters of a class of tokens: selections by local expert, rows, selections.
HEP_HOST_DEVICE constexpr int place_counters(const Shape& shape) {
  return shape.num_local_experts() + 2;
}
HEP_HOST_DEVICE constexpr int place_words(const Shape& shape) {
  return shape.num_ranks + 2 * shape.num_local_experts() + 1 +
         (kPlacingWarps + 2) * place_counters(shape);
}
HEP_HOST_DEVICE constexpr uint64_t place_bytes(const Shape& shape) {
  constexpr int kLanes = 32, kSelectionBytes = 8, kStageAlignment = 128;
  return align_up(
      kPlacingWarps * kLanes * kSelectionBytes + place_words(shape) * sizeof(uint32_t) +
          uint64_t{1} * shape.num_ranks * shape.max_tokens * shape.max_top_k * sizeof(uint16_t),
      kStageAlignment);
}
HEP_HOST_DEVICE constexpr bool can_place(const Shape& shape) {
  return place_bytes(shape) + uint64_t{kFewestStages} * shape.row_bytes <= kMaxPlaceBytes;
}

// ------------------------------------------------------------------------------------- signals

// What one peer tells this rank of its rows, in two sets: dispatches take turns.
struct RowsSignal {
  uint64_t ready;          // epoch of the dispatch whose rows are published, at `place`
  uint64_t place;          // the following are written before `ready`
  uint64_t has_weights;    // 1 if weights will be published
  uint64_t has_scales;     // cuda: 1 if scales will be published
  uint64_t call;           // the peer's call, as of call_summary.h
  uint64_t weights_ready;  // epoch of the dispatch whose weights (cuda: and scales) are published
};

// What one peer tells this rank of its outputs in combine, in two sets likewise.
struct OutputsSignal {
  uint64_t ready;     // epoch of the combine of which the following tells
  uint64_t place;     // cuda: where the outputs for this rank lie; kNotInWindow: it sends partials
  uint64_t num_rows;  // cuda: there
  uint64_t call;      // the peer's call
};

// What one peer tells this rank: slot [peer] of this rank's window, written by that peer alone.
// Each word is the epoch, counted from 1, of the latest operation of which it is true; `rows_read` and
// `slots_free` of the latest that waits for it.
struct Signals {
  uint64_t records_ready;    // host: the peer's records for this rank lie in this window
  RowsSignal rows[2];        // by the dispatch's epoch
  uint64_t rows_read;        // dispatch: the peer has read all it needs of this rank's rows
  uint64_t slots_free;       // combine: the peer has added up all that it was sent, or has read
  OutputsSignal outputs[2];  // by the combine's epoch
  uint64_t reserved;

  HEP_HOST_DEVICE RowsSignal& rows_of(uint64_t epoch) { return rows[epoch & 1]; }
  HEP_HOST_DEVICE const RowsSignal& rows_of(uint64_t epoch) const { return rows[epoch & 1]; }
  HEP_HOST_DEVICE OutputsSignal& outputs_of(uint64_t epoch) { return outputs[epoch & 1]; }
  HEP_HOST_DEVICE const OutputsSignal& outputs_of(uint64_t epoch) const {
    return outputs[epoch & 1];
  }
};
static_assert(sizeof(Signals) == 192);
constexpr uint64_t kNotInWindow = ~uint64_t{0};

// A place that peers can read: bytes from the beginning of a rank's window, or of memory that it has
// registered, whose slot among its registrations then stands above, counted from 1.
constexpr int kMaxRegistrations = 64;
constexpr int kPlaceOffsetBits = 56;
HEP_HOST_DEVICE constexpr uint64_t registered_place(int slot, uint64_t offset) {
  return (static_cast<uint64_t>(slot) + 1) << kPlaceOffsetBits | offset;
}
HEP_HOST_DEVICE constexpr int slot_of(uint64_t place) {  // -1: the window
  return static_cast<int>(place >> kPlaceOffsetBits) - 1;
}
HEP_HOST_DEVICE constexpr uint64_t offset_of(uint64_t place) {
  return place & ((uint64_t{1} << kPlaceOffsetBits) - 1);
}

// ------------------------------------------------------------------------------------- records

// One flat row: a token that selected at least one expert of the receiving rank.
// In a window it is relative to its source, in a routing absolute.
struct Row {
  uint32_t token;    // index on the source rank
  uint32_t first;    // index of its first selection
  uint16_t count;    // its selections, consecutive, in ascending (expert, k) order; at least 1
  uint16_t ordinal;  // how many lower ranks the token selected: its slot for the partial sum
  uint16_t source;   // source rank
  uint16_t reserved;
};
static_assert(sizeof(Row) == 16);

// One selection of a local expert.
struct Selection {
  uint32_t place;   // in a window: index among the source's selections of this expert in (token, k)
                    // order; in a routing: index of its row in the expert-major layout
  uint16_t expert;  // local expert
  uint16_t k;
};
static_assert(sizeof(Selection) == 8);

// Where a token of this rank went: one for each rank that it selected, in ascending order.
struct SentRow {
  uint16_t rank;
  uint16_t index;  // among this rank's rows there
};
static_assert(sizeof(SentRow) == 4 && kMaxTokens - 1 <= UINT16_MAX);

// What precedes a source's records; uint32_t counts[EL], selections by local expert, follow.
struct RecordHeader {
  uint32_t num_tokens;  // T of the source
  uint32_t num_rows;
  uint32_t num_selections;
  uint32_t top_k;  // must be the same on all ranks
};
static_assert(sizeof(RecordHeader) == 16);

// -------------------------------------------------------------------------------------- window

// Byte offsets into one lane's part of a window; the same on every rank. The heap follows, behind the parts
// of all lanes.
//
//   signals        [R]               Signals
//   block_records  [R][kMaxBlocks]   cuda: epoch of the routing update for which this block of the peer
//                                    has written its records
//   chunk_ready    [max_chunks][R]   epoch of the combine for which the peer's partials of a chunk
//                                    of this rank's tokens have arrived
//   records        [2][R]            header, counts, rows, selections of each source; update n
//                                    uses parity n & 1, so a fast peer can be one update ahead
//   choices        [2][R]            cuda: of an update that is part of a dispatch: a header, each
//                                    token's epoch once its row is published, each source's experts
//                                    and weights, in words that tell their epoch; by parity, too
//   published      [sets]            by the dispatch's epoch
//     rows           [max_tokens]      published rows of this rank, unless they lie in the heap
//     scales         [max_tokens][scale_stride]  published scales
//     weights        [max_tokens][K]   published weights
//   slots          [sets]            by the combine's epoch
//     partials       [max_tokens][max_partials]  slots for partial sums of this rank's tokens
//     gradients      [max_tokens][K]   gradients of the weights of this rank's tokens, each written by
//                                      the rank that has the selection; zero between combines
//   heap
struct WindowLayout {
  uint64_t block_records, chunk_ready, records, choices, published, slots, heap, total;

  // Inside the records of one source.
  uint64_t record_rows, record_selections, record_stride;
  uint64_t choice_stride;  // of a source

  // Inside a set of what is published, and of slots.
  uint64_t published_scales, published_weights, published_stride;
  uint64_t slot_gradients, slots_stride;

  Shape shape;

  HEP_HOST_DEVICE static constexpr WindowLayout make(const Shape& shape) {
    const uint64_t ranks = shape.num_ranks, tokens = shape.max_tokens, top_k = shape.max_top_k;
    WindowLayout w{};
    w.shape = shape;

    w.record_rows =
        align_up(sizeof(RecordHeader) + sizeof(uint32_t) * shape.num_local_experts(), sizeof(Row));
    w.record_selections = w.record_rows + tokens * sizeof(Row);
    w.record_stride =
        align_up(w.record_selections + tokens * top_k * sizeof(Selection), kSectionAlignment);

    w.block_records = align_up(ranks * sizeof(Signals), kSectionAlignment);
    w.chunk_ready =
        align_up(w.block_records + ranks * kMaxBlocks * sizeof(uint64_t), kSectionAlignment);
    w.records =
        align_up(w.chunk_ready + shape.max_chunks() * ranks * sizeof(uint64_t), kSectionAlignment);
    w.choice_stride = shape.choice_tokens == 0
                          ? 0
                          : align_up((kChoiceHeaderWords +
                                      uint64_t{1} * shape.choice_tokens *
                                          (1 + choice_words(shape.max_top_k) + shape.max_top_k)) *
                                         sizeof(uint64_t),
                                     kSectionAlignment);
    w.choices = w.records + 2 * ranks * w.record_stride;
    w.published = w.choices + 2 * ranks * w.choice_stride;
    w.published_scales = align_up(tokens * shape.row_bytes, kSectionAlignment);
    w.published_weights =
        align_up(w.published_scales + tokens * shape.scale_stride(), kSectionAlignment);
    w.published_stride =
        align_up(w.published_weights + tokens * top_k * sizeof(float), kSectionAlignment);
    w.slots = w.published + shape.sets * w.published_stride;
    w.slot_gradients =
        align_up(tokens * shape.max_partials() * shape.partial_row_bytes, kSectionAlignment);
    w.slots_stride = align_up(w.slot_gradients + tokens * top_k * sizeof(float), kSectionAlignment);
    w.heap = w.slots + shape.sets * w.slots_stride;
    w.total = w.heap + align_up(shape.heap_bytes, kSectionAlignment);
    return w;
  }

  // Where other lanes lie between this one and the heap.
  constexpr void move_heap(uint64_t begin) {
    total += begin - heap;
    heap = begin;
  }

  HEP_HOST_DEVICE constexpr uint64_t signals_at(int peer) const { return peer * sizeof(Signals); }
  HEP_HOST_DEVICE constexpr uint64_t block_records_at(int peer, int block) const {
    return block_records + (static_cast<uint64_t>(peer) * kMaxBlocks + block) * sizeof(uint64_t);
  }
  HEP_HOST_DEVICE constexpr uint64_t chunk_ready_at(int chunk, int peer) const {
    return chunk_ready + (static_cast<uint64_t>(chunk) * shape.num_ranks + peer) * sizeof(uint64_t);
  }
  HEP_HOST_DEVICE constexpr uint64_t header_at(uint64_t epoch, int source) const {
    return records + ((epoch & 1) * shape.num_ranks + source) * record_stride;
  }
  HEP_HOST_DEVICE constexpr uint64_t counts_at(uint64_t epoch, int source) const {
    return header_at(epoch, source) + sizeof(RecordHeader);
  }
  HEP_HOST_DEVICE constexpr uint64_t choices_at(uint64_t epoch, int source) const {
    return choices + ((epoch & 1) * shape.num_ranks + source) * choice_stride;
  }
  HEP_HOST_DEVICE constexpr uint64_t rows_at(uint64_t epoch, int source) const {
    return header_at(epoch, source) + record_rows;
  }
  HEP_HOST_DEVICE constexpr uint64_t selections_at(uint64_t epoch, int source) const {
    return header_at(epoch, source) + record_selections;
  }
  // What dispatch `epoch` publishes.
  HEP_HOST_DEVICE constexpr uint64_t published_by(uint64_t epoch) const {
    return published + (shape.sets == 2 ? (epoch & 1) * published_stride : 0);
  }
  HEP_HOST_DEVICE constexpr uint64_t weights_at(uint64_t epoch, int64_t token, int top_k) const {
    return published_by(epoch) + published_weights +
           static_cast<uint64_t>(token) * top_k * sizeof(float);
  }
  HEP_HOST_DEVICE constexpr uint64_t scales_at(uint64_t epoch, int64_t token) const {
    return published_by(epoch) + published_scales +
           static_cast<uint64_t>(token) * shape.scale_stride();
  }
  // What combine `epoch` is sent.
  HEP_HOST_DEVICE constexpr uint64_t slots_of(uint64_t epoch) const {
    return slots + (shape.sets == 2 ? (epoch & 1) * slots_stride : 0);
  }
  HEP_HOST_DEVICE constexpr uint64_t gradients_at(uint64_t epoch, int64_t token, int top_k) const {
    return slots_of(epoch) + slot_gradients + static_cast<uint64_t>(token) * top_k * sizeof(float);
  }
  HEP_HOST_DEVICE constexpr uint64_t partial_at(uint64_t epoch, int64_t token, int ordinal) const {
    return slots_of(epoch) + (static_cast<uint64_t>(token) * shape.max_partials() + ordinal) *
                                 shape.partial_row_bytes;
  }
};

// ------------------------------------------------------------------------------------- routing

// Byte offsets into the private memory of a routing, filled by an update.
//
//   tokens_per_expert  [EL] int32_t
//   expert_offsets     [EL + 1] int32_t   aligned
//   totals             RoutingTotals
//   source_tokens      [R] uint32_t       T of each source
//   source_rows        [R + 1] uint32_t   flat rows before each source
//   chunk_rows         [R][max_chunks + 1] uint32_t   flat row, absolute, at which each chunk of a
//                                         source's tokens begins, and after the last one the end
//                                         of its rows
//   partial_counts     [max_tokens] uint8_t   ranks that each token of this rank selected
//   sent_rows          [max_tokens][max_partials] SentRow   on the cuda backend
//   rows               [R * max_tokens] Row, in canonical order
//   selections         [R * max_tokens * K] Selection, in the order of their rows
//   weights            [R * max_tokens * K] float, of the selections; filled by dispatch. On the cuda
//                      backend an update keeps the indices of a map here meanwhile
struct RoutingTotals {
  int64_t num_flat_rows;
  int64_t num_expert_rows;
  hepRowCounters_t row_counters;  // of the latest dispatch
  // Of the update that filled this routing: which one of the lane, and its T and K.
  uint64_t update;
  int32_t num_tokens, top_k;
};

struct RoutingLayout {
  uint64_t tokens_per_expert, expert_offsets, totals, source_tokens, source_rows, chunk_rows,
      partial_counts, sent_rows, rows, selections, weights, total;
  int32_t num_experts;  // EL

  HEP_HOST_DEVICE static constexpr RoutingLayout make(const Shape& shape) {
    const uint64_t ranks = shape.num_ranks, tokens = shape.max_tokens;
    const uint64_t experts = shape.num_local_experts(), max_rows = ranks * tokens;
    RoutingLayout r{};
    r.num_experts = shape.num_local_experts();
    uint64_t end = 0;
    const auto section = [&end](uint64_t bytes) {
      const uint64_t begin = end;
      end = align_up(end + bytes, kSectionAlignment);
      return begin;
    };
    r.tokens_per_expert = section(experts * sizeof(int32_t));
    r.expert_offsets = section((experts + 1) * sizeof(int32_t));
    r.totals = section(sizeof(RoutingTotals));
    r.source_tokens = section(ranks * sizeof(uint32_t));
    r.source_rows = section((ranks + 1) * sizeof(uint32_t));
    r.chunk_rows = section(ranks * (shape.max_chunks() + 1) * sizeof(uint32_t));
    r.partial_counts = section(tokens);
    r.sent_rows = section(tokens * shape.max_partials() * sizeof(SentRow));
    r.rows = section(max_rows * sizeof(Row));
    r.selections = section(max_rows * shape.max_top_k * sizeof(Selection));
    r.weights = section(max_rows * shape.max_top_k * sizeof(float));
    r.total = end;
    return r;
  }
};

// ------------------------------------------------------------------------------------- outputs

constexpr int64_t kDropped = -1;

// Where a selection's row lies in an expert layout; kDropped if it is past the capacity. A selection that
// no update has made is dropped, too: its row would lie outside of the output.
HEP_HOST_DEVICE constexpr int64_t row_of_selection(int32_t layout, int64_t capacity,
                                                   int32_t num_experts,
                                                   const int32_t* expert_offsets,
                                                   const Selection& selection) {
  if (layout == hepLayoutExpertMajor)
    return selection.place < capacity ? selection.place : kDropped;
  if (selection.expert >= num_experts) return kDropped;
  const int64_t index = int64_t{selection.place} - expert_offsets[selection.expert];
  return index >= 0 && index < capacity ? selection.expert * capacity + index : kDropped;
}

// The number of the element in which column-major scales hold a column of a row: [columns][stride],
// expert-padded [EL][columns][stride].
HEP_HOST_DEVICE constexpr int64_t scale_element(int32_t layout, int64_t capacity, int columns,
                                                int64_t stride, int64_t row, int column) {
  if (layout != hepLayoutExpertPadded) return column * stride + row;
  return (row / capacity * columns + column) * stride + row % capacity;
}

// Typed access to memory that is described by offsets.
template <typename T>
HEP_HOST_DEVICE inline T* at(void* base, uint64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}
template <typename T>
HEP_HOST_DEVICE inline const T* at(const void* base, uint64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(base) + offset);
}

}  // namespace hep
