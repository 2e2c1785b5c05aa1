// SPDX-License-Identifier: Apache-2.0
#include "backend/channels.h"

namespace hep {
namespace {

// A section with an entry for each other domain, of `slots` slots of `stride` bytes.
struct Section {
  uint64_t begin;
  uint64_t of_domain, of_slot;
};

Channel channel(const Section& from, const Section& to, uint32_t slots, uint32_t targets,
                uint64_t max_bytes) {
  return {from.begin, from.of_domain, from.of_slot, to.begin, to.of_domain,
          to.of_slot, slots,          targets,      max_bytes};
}

}  // namespace

void fill_channels(const Lane& lane, Channel* channels) {
  const NetworkLayout& n = lane.network_layout;
  const auto at = [&](WriteKind kind) -> Channel& { return channels[static_cast<int>(kind)]; };
  const uint64_t others = n.num_others();
  const auto by_parity = [&](uint64_t begin, uint64_t bytes) -> Section {
    return {lane.offset + begin, bytes, others * bytes};
  };
  const auto rings = [&](uint64_t begin, const RingShape& ring, uint64_t bytes) -> Section {
    return {lane.offset + begin, ring.slots * bytes, bytes};
  };
  at(WriteKind::kRecords) = channel(by_parity(n.records_out, n.block_stride),
                                    by_parity(n.records_in, n.block_stride), 2, 2, n.block_stride);
  at(WriteKind::kCall) =
      channel(by_parity(n.calls_out, sizeof(NetworkCall)),
              by_parity(n.calls_in, sizeof(NetworkCall)), 2, 2, sizeof(NetworkCall));
  at(WriteKind::kRows) = channel(rings(n.rows_out, n.row_ring, n.row_chunk_stride),
                                 rings(n.rows_in, n.row_ring, n.row_chunk_stride), n.row_ring.slots,
                                 n.row_ring.slots, n.row_chunk_stride);
  const Section pool{lane.offset + n.parts, 0, n.part_row_stride};
  at(WriteKind::kParts) =
      channel(rings(n.parts_out, n.part_ring, n.part_chunk_stride), pool, n.part_ring.slots,
              static_cast<uint32_t>(lane.shape.sets * n.set_parts), n.part_chunk_stride);
}

uint32_t descriptor_slots(const NetworkLayout& layout) {
  // Of each other domain: rows, parts and credits, two blocks of records, two calls.
  return ring_slots(layout.num_others() * (2 * layout.row_ring.slots + layout.part_ring.slots + 4));
}

}  // namespace hep
