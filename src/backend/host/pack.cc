// SPDX-License-Identifier: Apache-2.0
#include "backend/host/pack.h"

#include <algorithm>
#include <cstring>

#include "backend/host/row_chunk.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/data_type.h"

namespace hep {

Packer::Packer(const Operation& operation, const hepDispatchArgs_t& args,
               const HostRoutingState& state)
    : operation_(operation),
      args_(args),
      state_(state),
      row_bytes_(args.hidden * element_bytes(args.type)),
      rows_(args.quantize == hepQuantizeNone
                ? static_cast<const char*>(args.x)
                : at<char>(operation.own_window(),
                           operation.layout().published_by(operation.epoch()))),
      copier_(row_bytes_, state.num_tokens()) {
  const Rail& rail = *operation.rail();
  for (int i = 0; i < rail.num_others(); ++i)
    num_chunks_ = std::max(num_chunks_, chunks_to(rail.in_turn(i)));
}

int Packer::chunks_to(int domain) const {
  return operation_.network().row_ring.num_chunks(state_.part_rows[domain]);
}

Status Packer::pack(int chunk) {
  const Rail& rail = *operation_.rail();
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    if (chunk < chunks_to(domain)) HEP_TRY(pack_chunk(domain, chunk));
  }
  return {};
}

Status Packer::pack_chunk(int domain, int chunk) {
  Rail& rail = *operation_.rail();
  const NetworkLayout& network = operation_.network();
  const uint64_t number = rail.rows_sent[domain];
  HEP_TRY(await_room(domain, number));
  void* to =
      at<char>(operation_.own_window(), network.row_chunk_out_at(rail.index_of(domain), number));
  const uint32_t first = uint32_t(chunk) * network.row_ring.rows;
  const uint32_t num_rows =
      std::min<uint32_t>(network.row_ring.rows, state_.part_rows[domain] - first);
  const uint64_t bytes = fill(to, domain, chunk, first, num_rows);
  const int slot = network.row_ring.slot_of(number);
  ++rail.rows_sent[domain];
  rail.send(WriteKind::kRows, domain, slot, slot, bytes);
  return {};
}

// The slot is free when the network has read it here and all ranks there have taken it.
Status Packer::await_room(int domain, uint64_t number) const {
  const Rail& rail = *operation_.rail();
  const uint64_t slots = operation_.network().row_ring.slots;
  if (number < slots) return {};
  const uint64_t before = number + 1 - slots;
  HEP_TRY(operation_.wait(hepPhaseNetwork, rail.peer(domain),
                          rail.completed(WriteKind::kRows, domain), before));
  return operation_.wait(hepPhaseNetwork, rail.peer(domain),
                         rail.arrived(operation_.rank(), WriteKind::kCredit, domain), before);
}

// Returns the bytes of the chunk.
uint64_t Packer::fill(void* chunk, int domain, int number, uint32_t first,
                      uint32_t num_rows) const {
  const int top_k = state_.top_k();
  const uint64_t scale_stride = operation_.shape().scale_stride();
  ChunkHeader& header = *at<ChunkHeader>(chunk, 0);
  header = {};
  header.epoch = operation_.epoch();
  header.call = summary_of(args_, state_.num_tokens(), state_.totals->update);
  header.number = static_cast<uint32_t>(number);
  header.num_rows = num_rows;
  header.has_weights = args_.weights != nullptr;
  header.has_scales = args_.scales != nullptr || args_.quantize != hepQuantizeNone;
  const RowChunkLayout layout = RowChunkLayout::make(header, row_bytes_, scale_stride, top_k);
  const uint16_t* tokens = state_.part_tokens + state_.first_parts[domain] + first;
  for (uint32_t i = 0; i < num_rows; ++i) {
    const int64_t token = tokens[i];
    copier_.copy(at<char>(chunk, layout.rows + i * row_bytes_), rows_ + token * row_bytes_);
    if (header.has_scales != 0)
      std::memcpy(at<char>(chunk, layout.scales + i * scale_stride),
                  at<char>(operation_.own_window(),
                           operation_.layout().scales_at(operation_.epoch(), token)),
                  scale_stride);
    if (header.has_weights != 0)
      std::copy_n(at<float>(operation_.own_window(),
                            operation_.layout().weights_at(operation_.epoch(), token, top_k)),
                  top_k, at<float>(chunk, layout.weights) + int64_t{i} * top_k);
  }
  copier_.fence();
  return layout.end;
}

Status Packer::await_sent() const {
  const Rail& rail = *operation_.rail();
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    HEP_TRY(operation_.wait(hepPhaseNetwork, rail.peer(domain),
                            rail.completed(WriteKind::kRows, domain), rail.rows_sent[domain]));
  }
  return {};
}

}  // namespace hep
