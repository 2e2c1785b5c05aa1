// SPDX-License-Identifier: Apache-2.0
// What lies where in the part of a window that serves the other domains, and what is written there.
// With one domain there is no such part.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/records.h"
#include "protocol/shape.h"
#include "protocol/topology.h"

namespace hep {

constexpr int kMaxNetworkChunkRows = 32;
constexpr int kLeastLowLatencyChunkRows = 4;  // so that packing and the wire overlap
constexpr int kMaxThroughputSlots = 8;
constexpr int kMaxNetworkSlots = 128;  // of a ring
constexpr uint64_t kInboxBytes = 128;  // of what the proxy tells of a domain and lane
constexpr uint64_t kNetworkGranularity = 16;

// What precedes the rows of a chunk on the wire. The rows follow, then their scales, then their
// weights, each without gaps.
struct ChunkHeader {
  uint64_t epoch;  // of the dispatch
  uint64_t call;   // the source's, as of call_summary.h
  uint32_t number;
  uint32_t num_rows;
  uint32_t has_weights, has_scales;
  uint64_t reserved[4];
};
static_assert(sizeof(ChunkHeader) == 64);

// What a source tells each rail peer when a combine begins. Its pool has room for the parts then.
struct NetworkCall {
  uint64_t epoch;
  uint64_t call;
  uint64_t reserved[6];
};
static_assert(sizeof(NetworkCall) == 64);

// What precedes the records of a source for a domain. RecordHeader [L], counts [L][EL], the numbers
// of ranks [num_rows], the rows of all ranks and then the selections of all ranks follow.
struct BlockHeader {
  uint64_t update;
  uint32_t num_tokens, top_k;
  uint32_t num_rows;    // that the source sends to the domain: tokens that selected a rank there
  uint32_t first_part;  // where the domain's parts begin in the pool of the source
  uint64_t reserved[5];
};
static_assert(sizeof(BlockHeader) == 64);

// Offsets in a block of records whose ranks have so many rows together.
struct BlockLayout {
  uint64_t headers, counts, num_ranks, rows, selections;

  HEP_HOST_DEVICE static constexpr BlockLayout make(int domain_size, int num_experts,
                                                    uint64_t num_rows, uint64_t rank_rows) {
    BlockLayout b{};
    b.headers = sizeof(BlockHeader);
    b.counts = b.headers + domain_size * sizeof(RecordHeader);
    b.num_ranks = b.counts + uint64_t{1} * domain_size * num_experts * sizeof(uint32_t);
    b.rows = align_up(b.num_ranks + num_rows, kNetworkGranularity);
    b.selections = b.rows + rank_rows * sizeof(Row);
    return b;
  }
  HEP_HOST_DEVICE constexpr uint64_t end(uint64_t num_selections) const {
    return align_up(selections + num_selections * sizeof(Selection), kNetworkGranularity);
  }
};

// How a ring is cut: slots of chunks of rows.
struct RingShape {
  int32_t rows;  // of a chunk
  int32_t slots;

  HEP_HOST_DEVICE constexpr int32_t num_chunks(int64_t num_rows) const {
    return num_rows == 0 ? 1 : static_cast<int32_t>((num_rows + rows - 1) / rows);
  }
  HEP_HOST_DEVICE constexpr int32_t slot_of(uint64_t number) const {
    return static_cast<int32_t>(number % slots);
  }
};

// Byte offsets from the beginning of a lane's part of the window. Each of the following has an
// entry for each other domain, in their order, where it says [D - 1], and for every one where it
// says [D].
//
//   inboxes       [D]       what the proxy of this rank counts; written by it, read by the domain
//   taken         [D][L]    chunks of the rail peer there that each rank of this domain has taken
//   relayed_by    [D][L]    chunks of its parts that each rank of this domain has sent here
//   relayed       [D]       chunks of its parts that this rank has added up and sent
//   calls_out/in  [2][D-1]  NetworkCall, by the combine's epoch
//   records_out   [2][D-1]  blocks of records, by the update's epoch
//   records_in    [2][D-1]
//   rows_out      [D-1]     rings of chunks of rows
//   rows_in       [D-1]
//   parts_out     [D-1]     rings of chunks of parts
//   parts         [sets]    pool: the parts of the other domains, in the order of the rows that
//                           this rank sent there; the rows of a chunk first, then its gradients
//   relay         [D-1]     rings of chunks of partial sums [rows][min(K, L)], and gradients
//                           [rows][K], which are zero between combines
struct NetworkLayout {
  uint64_t inboxes, taken, relayed_by, relayed, calls_out, calls_in, records_out, records_in,
      rows_out, rows_in, parts_out, parts, relay, end;
  uint64_t block_stride, row_chunk_stride, part_chunk_stride, part_row_stride, relay_chunk_stride;
  uint64_t relay_gradients;  // in a chunk of the relay
  uint64_t set_parts;        // rows of a set of the pool
  RingShape row_ring, part_ring;
  Topology topology;
  int32_t max_relayed;     // ranks of this domain that one token selects, at most: min(K, L)
  int32_t max_parts;       // other domains that one token selects, at most: min(K, D - 1)
  bool holds_two_batches;  // no packer of a batch waits for the batch before

  // `begin`: the end of the lane's part without a network. `shape`: of the whole job.
  static constexpr NetworkLayout make(const Shape& shape, int domain_size, uint64_t begin,
                                      uint64_t network_bytes);

  // The bytes of the largest chunk of one row: what network_bytes must hold for each other domain
  // at least.
  static constexpr uint64_t least_bytes(const Shape& shape, int domain_size);

  HEP_HOST_DEVICE constexpr bool empty() const { return topology.num_domains() <= 1; }
  HEP_HOST_DEVICE constexpr int num_others() const { return topology.num_domains() - 1; }

  HEP_HOST_DEVICE constexpr uint64_t inbox_at(int domain) const {
    return inboxes + domain * kInboxBytes;
  }
  HEP_HOST_DEVICE constexpr uint64_t taken_at(int domain, int number) const {
    return taken + word(domain * topology.domain_size + number);
  }
  HEP_HOST_DEVICE constexpr uint64_t relayed_by_at(int domain, int number) const {
    return relayed_by + word(domain * topology.domain_size + number);
  }
  HEP_HOST_DEVICE constexpr uint64_t relayed_at(int domain) const { return relayed + word(domain); }

  // In the following, `index` is that of another domain.
  HEP_HOST_DEVICE constexpr uint64_t call_out_at(uint64_t epoch, int index) const {
    return calls_out + by_parity(epoch, index) * sizeof(NetworkCall);
  }
  HEP_HOST_DEVICE constexpr uint64_t call_in_at(uint64_t epoch, int index) const {
    return calls_in + by_parity(epoch, index) * sizeof(NetworkCall);
  }
  HEP_HOST_DEVICE constexpr uint64_t block_out_at(uint64_t epoch, int index) const {
    return records_out + by_parity(epoch, index) * block_stride;
  }
  HEP_HOST_DEVICE constexpr uint64_t block_in_at(uint64_t epoch, int index) const {
    return records_in + by_parity(epoch, index) * block_stride;
  }
  // `number`: of a chunk in its stream, from 0.
  HEP_HOST_DEVICE constexpr uint64_t row_chunk_out_at(int index, uint64_t number) const {
    return rows_out + in_ring(row_ring, index, number) * row_chunk_stride;
  }
  HEP_HOST_DEVICE constexpr uint64_t row_chunk_in_at(int index, uint64_t number) const {
    return rows_in + in_ring(row_ring, index, number) * row_chunk_stride;
  }
  HEP_HOST_DEVICE constexpr uint64_t part_chunk_out_at(int index, uint64_t number) const {
    return parts_out + in_ring(part_ring, index, number) * part_chunk_stride;
  }
  HEP_HOST_DEVICE constexpr uint64_t relay_chunk_at(int index, uint64_t number) const {
    return relay + in_ring(part_ring, index, number) * relay_chunk_stride;
  }
  // The row of the pool at which the parts of a combine begin.
  HEP_HOST_DEVICE constexpr uint64_t first_part_of(uint64_t epoch, int sets) const {
    return sets == 2 ? (epoch & 1) * set_parts : 0;
  }

 private:
  HEP_HOST_DEVICE static constexpr uint64_t word(uint64_t index) {
    return index * sizeof(uint64_t);
  }
  HEP_HOST_DEVICE constexpr uint64_t by_parity(uint64_t epoch, int index) const {
    return (epoch & 1) * num_others() + index;
  }
  HEP_HOST_DEVICE constexpr uint64_t in_ring(const RingShape& ring, int index,
                                             uint64_t number) const {
    return uint64_t{1} * index * ring.slots + ring.slot_of(number);
  }
};

// Bytes of the weights, or gradients, of a row, where the next row can follow.
HEP_HOST_DEVICE constexpr uint64_t padded_weight_bytes(int top_k) {
  return align_up(top_k * sizeof(float), kNetworkGranularity);
}

// Of one row in each kind of chunk.
HEP_HOST_DEVICE constexpr uint64_t wire_row_bytes(const Shape& shape) {
  return shape.row_bytes + shape.scale_stride() + padded_weight_bytes(shape.max_top_k);
}
HEP_HOST_DEVICE constexpr uint64_t part_row_bytes(const Shape& shape) {
  return shape.partial_row_bytes + padded_weight_bytes(shape.max_top_k);
}
HEP_HOST_DEVICE constexpr uint64_t relay_row_bytes(const Shape& shape, int domain_size) {
  const int ranks = shape.max_top_k < domain_size ? shape.max_top_k : domain_size;
  return uint64_t{1} * ranks * shape.partial_row_bytes + padded_weight_bytes(shape.max_top_k);
}

HEP_HOST_DEVICE constexpr uint64_t chunk_stride(int rows, uint64_t row_bytes) {
  return align_up(sizeof(ChunkHeader) + rows * row_bytes, kSectionAlignment);
}

// The largest chunks of which two find room in `bytes`, and as many of them as find it; of low
// latency, where `tokens` is not 0, small chunks, and two batches if they find room.
constexpr RingShape choose_ring(uint64_t row_bytes, uint64_t bytes, int low_latency_tokens) {
  RingShape ring{kMaxNetworkChunkRows, kMaxThroughputSlots};
  if (low_latency_tokens > 0) {
    ring.rows = kLeastLowLatencyChunkRows;
    while (ring.rows < kMaxNetworkChunkRows &&
           2 * ceil_div(low_latency_tokens, ring.rows) > kMaxNetworkSlots)
      ring.rows *= 2;
    const int wanted = 2 * ceil_div(low_latency_tokens, ring.rows);
    ring.slots = wanted < kMaxNetworkSlots ? wanted : kMaxNetworkSlots;
  }
  while (ring.rows > 1 && 2 * chunk_stride(ring.rows, row_bytes) > bytes) ring.rows /= 2;
  const uint64_t fit = bytes / chunk_stride(ring.rows, row_bytes);
  if (fit < static_cast<uint64_t>(ring.slots)) ring.slots = static_cast<int32_t>(fit);
  if (ring.slots < 1) ring.slots = 1;
  return ring;
}

constexpr uint64_t NetworkLayout::least_bytes(const Shape& shape, int domain_size) {
  const uint64_t row = wire_row_bytes(shape), relay = relay_row_bytes(shape, domain_size);
  return chunk_stride(1, row > relay ? row : relay);
}

constexpr NetworkLayout NetworkLayout::make(const Shape& shape, int domain_size, uint64_t begin,
                                            uint64_t network_bytes) {
  NetworkLayout n{};
  n.topology = {shape.num_ranks, domain_size};
  n.inboxes = n.end = begin;
  if (n.empty()) return n;

  const uint64_t domains = n.topology.num_domains(), others = n.num_others();
  const uint64_t tokens = shape.max_tokens, sets = shape.sets;
  const int top_k = shape.max_top_k;
  n.max_relayed = top_k < domain_size ? top_k : domain_size;
  n.max_parts = top_k < n.num_others() ? top_k : n.num_others();

  const uint64_t of_domain = network_bytes / others;
  const int low_latency_tokens = sets == 2 ? shape.max_tokens : 0;
  const uint64_t row_bytes = wire_row_bytes(shape);
  const uint64_t relay_bytes = relay_row_bytes(shape, domain_size);
  n.row_ring = choose_ring(row_bytes, of_domain, low_latency_tokens);
  n.part_ring = choose_ring(relay_bytes, of_domain, low_latency_tokens);
  n.holds_two_batches = n.row_ring.slots >= 2 * n.row_ring.num_chunks(shape.max_tokens) &&
                        n.part_ring.slots >= 2 * n.part_ring.num_chunks(shape.max_tokens);

  n.part_row_stride = part_row_bytes(shape);
  n.row_chunk_stride = chunk_stride(n.row_ring.rows, row_bytes);
  n.part_chunk_stride = align_up(n.part_ring.rows * n.part_row_stride, kSectionAlignment);
  n.relay_gradients = uint64_t{1} * n.part_ring.rows * n.max_relayed * shape.partial_row_bytes;
  n.relay_chunk_stride = chunk_stride(n.part_ring.rows, relay_bytes);
  const uint64_t most_rank_rows = tokens * n.max_relayed, most_selections = tokens * top_k;
  const BlockLayout block =
      BlockLayout::make(domain_size, shape.num_local_experts(), tokens, most_rank_rows);
  n.block_stride = align_up(block.end(most_selections), kSectionAlignment);
  n.set_parts = tokens * n.max_parts;

  uint64_t end = begin;
  const auto section = [&end](uint64_t bytes) {
    const uint64_t at = end;
    end = align_up(end + bytes, kSectionAlignment);
    return at;
  };
  n.inboxes = section(domains * kInboxBytes);
  n.taken = section(word(domains * domain_size));
  n.relayed_by = section(word(domains * domain_size));
  n.relayed = section(word(domains));
  n.calls_out = section(2 * others * sizeof(NetworkCall));
  n.calls_in = section(2 * others * sizeof(NetworkCall));
  n.records_out = section(2 * others * n.block_stride);
  n.records_in = section(2 * others * n.block_stride);
  n.rows_out = section(others * n.row_ring.slots * n.row_chunk_stride);
  n.rows_in = section(others * n.row_ring.slots * n.row_chunk_stride);
  n.parts_out = section(others * n.part_ring.slots * n.part_chunk_stride);
  n.parts = section(sets * n.set_parts * n.part_row_stride);
  n.relay = section(others * n.part_ring.slots * n.relay_chunk_stride);
  n.end = end;
  return n;
}

// Where a part of a token lies: the position of the token among the rows that this rank sent to a
// domain.
struct RemotePart {
  uint16_t domain;
  uint16_t position;
};
static_assert(sizeof(RemotePart) == 4 && kMaxTokens - 1 <= UINT16_MAX);

// Byte offsets into the private memory of a routing, behind those of RoutingLayout.
//
//   part_rows      [D] uint32_t       rows that this rank sends to each domain
//   first_parts    [D] uint32_t       where their parts begin in the pool
//   part_tokens    [T * max_parts] uint16_t   the token of each row of the pool
//   part_counts    [T] uint8_t        other domains that each token selected
//   token_parts    [T][max_parts] RemotePart, in the order of domains
//   source_rows    [R] uint32_t       rows that each rank of another domain sends to this one
//   rail_first_parts  [D] uint32_t  where this domain's parts begin in the rail peers' pools
//   rail_ranks     [D][T] uint8_t     ranks of this domain that each of their rows goes to
struct NetworkRoutingLayout {
  uint64_t part_rows, first_parts, part_tokens, part_counts, token_parts, source_rows,
      rail_first_parts, rail_ranks, end;

  static constexpr NetworkRoutingLayout make(const Shape& shape, const NetworkLayout& network,
                                             uint64_t begin) {
    NetworkRoutingLayout r{};
    r.part_rows = r.end = begin;
    if (network.empty()) return r;
    const uint64_t domains = network.topology.num_domains(), tokens = shape.max_tokens;
    uint64_t end = begin;
    const auto section = [&end](uint64_t bytes) {
      const uint64_t at = end;
      end = align_up(end + bytes, kSectionAlignment);
      return at;
    };
    r.part_rows = section(domains * sizeof(uint32_t));
    r.first_parts = section(domains * sizeof(uint32_t));
    r.part_tokens = section(network.set_parts * sizeof(uint16_t));
    r.part_counts = section(tokens);
    r.token_parts = section(network.set_parts * sizeof(RemotePart));
    r.source_rows = section(shape.num_ranks * sizeof(uint32_t));
    r.rail_first_parts = section(domains * sizeof(uint32_t));
    r.rail_ranks = section(domains * tokens);
    r.end = end;
    return r;
  }
};

}  // namespace hep
