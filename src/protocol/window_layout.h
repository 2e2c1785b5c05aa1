// SPDX-License-Identifier: Apache-2.0
// What lies where in the window that every rank shares with its peers.
#pragma once

#include <cstdint>

#include "protocol/choices.h"
#include "protocol/host_device.h"
#include "protocol/records.h"
#include "protocol/shape.h"
#include "protocol/signals.h"

namespace hep {

// Byte offsets into one lane's part of a window; the same on every rank. The heap follows, behind
// the parts of all lanes.
//
//   signals        [R]               Signals
//   block_records  [R][kMaxBlocks]   cuda: epoch of the routing update for which this block of the
//                                    peer has written its records
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
//     gradients      [max_tokens][K]   gradients of the weights of this rank's tokens, each written
//                                      by the rank that has the selection; zero between combines
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

}  // namespace hep
