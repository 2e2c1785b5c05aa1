// SPDX-License-Identifier: Apache-2.0
#include "backend/host/record_blocks.h"

#include <algorithm>
#include <cstring>

#include "backend/host/signal.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"

namespace hep {
namespace {

// A block, written or read.
template <typename Byte>
struct Block {
  Byte* base;
  int domain_size, num_experts;

  template <typename T>
  auto* section(uint64_t offset) const {
    return at<T>(base, offset);
  }
  auto& header() const { return *section<BlockHeader>(0); }
  // Of the ranks of the domain.
  auto* headers() const { return section<RecordHeader>(sizeof(BlockHeader)); }

  uint64_t rows_before(int number) const {
    uint64_t rows = 0;
    for (int i = 0; i < number; ++i) rows += headers()[i].num_rows;
    return rows;
  }
  uint64_t selections_before(int number) const {
    uint64_t selections = 0;
    for (int i = 0; i < number; ++i) selections += headers()[i].num_selections;
    return selections;
  }
  BlockLayout layout() const {
    return BlockLayout::make(domain_size, num_experts, header().num_rows, rows_before(domain_size));
  }
  uint64_t end() const { return layout().end(selections_before(domain_size)); }
};

Block<void> block_out(const Operation& operation, int domain) {
  const uint64_t place =
      operation.network().block_out_at(operation.epoch(), operation.rail()->index_of(domain));
  return {at<char>(operation.own_window(), place), operation.domain_size(),
          operation.shape().num_local_experts()};
}

// Of a rank of another domain, for this one.
Block<const void> block_of(const Operation& operation, int source) {
  const Rail& rail = *operation.rail();
  const int domain = operation.topology().domain_of(source);
  const uint64_t place = operation.network().block_in_at(operation.epoch(), rail.index_of(domain));
  return {at<char>(operation.window(rail.via(source)), place), operation.domain_size(),
          operation.shape().num_local_experts()};
}

template <typename Sections, typename Byte>
Sections sections_of(const Block<Byte>& block, int number) {
  const BlockLayout layout = block.layout();
  return {block.headers() + number,
          block.template section<uint32_t>(layout.counts) + number * block.num_experts,
          block.template section<Row>(layout.rows) + block.rows_before(number),
          block.template section<Selection>(layout.selections) + block.selections_before(number)};
}

void begin_block(const Operation& operation, int domain, const RecordTotals& totals,
                 const HostRoutingState& state) {
  const Block<void> block = block_out(operation, domain);
  std::memset(block.base, 0, sizeof(BlockHeader));
  BlockHeader& header = block.header();
  header.update = operation.epoch();
  header.num_tokens = static_cast<uint32_t>(state.num_tokens());
  header.top_k = static_cast<uint32_t>(state.top_k());
  header.num_rows = state.part_rows[domain];
  header.first_part = state.first_parts[domain];
  for (int number = 0; number < operation.domain_size(); ++number) {
    const int rank = operation.topology().rank_of(domain, number);
    block.headers()[number] = {header.num_tokens, totals.rank_rows[rank],
                               totals.rank_selections[rank], static_cast<uint16_t>(header.top_k),
                               0};
  }
}

// The layouts of a batch depend on K, so it is the same on all ranks. The batch must fit, too.
Status check_header(const Operation& operation, int source, const HostRoutingState& state) {
  const RecordHeader& header = *records_of(operation, source).header;
  const auto num_tokens = static_cast<int>(header.num_tokens);
  if (header.top_k != state.top_k())
    return operation.fail(hepErrorMismatch, hepPhaseRecords, source, state.top_k(), header.top_k);
  if (num_tokens > state.max_tokens)
    return operation.fail(hepErrorMismatch, hepPhaseRecords, source,
                          batch_word(state.max_tokens, state.max_top_k),
                          batch_word(num_tokens, header.top_k));
  return {};
}

}  // namespace

void begin_blocks(const Operation& operation, const RecordTotals& totals, HostRoutingState& state) {
  uint32_t first_part = 0;
  for (int domain = 0; domain < operation.topology().num_domains(); ++domain) {
    if (domain == operation.domain()) continue;
    state.part_rows[domain] = totals.domain_rows[domain];
    state.first_parts[domain] = first_part;
    first_part += totals.domain_rows[domain];
    begin_block(operation, domain, totals, state);
  }
}

uint8_t* num_ranks_in(const Operation& operation, int domain) {
  const Block<void> block = block_out(operation, domain);
  return block.section<uint8_t>(block.layout().num_ranks);
}

RecordsToWrite records_to(const Operation& operation, int destination) {
  const Topology& topology = operation.topology();
  if (!operation.is_local(destination))
    return sections_of<RecordsToWrite>(block_out(operation, topology.domain_of(destination)),
                                       topology.number_of(destination));
  void* window = operation.window(destination);
  const WindowLayout& layout = operation.layout();
  const int own = operation.number_of(operation.rank());
  const uint64_t epoch = operation.epoch();
  return {at<RecordHeader>(window, layout.header_at(epoch, own)),
          at<uint32_t>(window, layout.counts_at(epoch, own)),
          at<Row>(window, layout.rows_at(epoch, own)),
          at<Selection>(window, layout.selections_at(epoch, own))};
}

void send_blocks(const Operation& operation) {
  Rail& rail = *operation.rail();
  const uint64_t parity = operation.epoch() & 1;
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    rail.send(WriteKind::kRecords, domain, parity, parity, block_out(operation, domain).end());
  }
}

Status await_records(const Operation& operation, int source, const HostRoutingState& state) {
  if (operation.is_local(source)) {
    HEP_TRY(operation.wait(hepPhaseRecords, source, operation.from(source).records_ready,
                           operation.epoch()));
  } else {
    const Rail& rail = *operation.rail();
    const int via = rail.via(source), domain = operation.topology().domain_of(source);
    HEP_TRY(operation.wait_by_way(via, hepPhaseRecords, source,
                                  rail.arrived(via, WriteKind::kRecords, domain),
                                  operation.epoch()));
  }
  return check_header(operation, source, state);
}

RecordsToRead records_of(const Operation& operation, int source) {
  const int number = operation.number_of(operation.rank());
  if (!operation.is_local(source))
    return sections_of<RecordsToRead>(block_of(operation, source), number);
  const void* window = operation.own_window();
  const WindowLayout& layout = operation.layout();
  const int there = operation.number_of(source);
  const uint64_t epoch = operation.epoch();
  return {at<RecordHeader>(window, layout.header_at(epoch, there)),
          at<uint32_t>(window, layout.counts_at(epoch, there)),
          at<Row>(window, layout.rows_at(epoch, there)),
          at<Selection>(window, layout.selections_at(epoch, there))};
}

void keep_blocks(const Operation& operation, HostRoutingState& state) {
  for (int i = 0; i < operation.num_remote(); ++i) {
    const int source = operation.remote_in_turn(i);
    const Block<const void> block = block_of(operation, source);
    const BlockHeader& header = block.header();
    state.source_domain_rows[source] = header.num_rows;
    if (operation.number_of(source) != operation.number_of(operation.rank())) continue;
    const int domain = operation.topology().domain_of(source);
    state.rail_first_parts[domain] = header.first_part;
    std::copy_n(block.section<uint8_t>(block.layout().num_ranks), header.num_rows,
                state.rail_ranks_of(domain));
  }
}

Status await_blocks_sent(const Operation& operation) {
  const Rail& rail = *operation.rail();
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    HEP_TRY(operation.wait(hepPhaseNetwork, rail.peer(domain),
                           rail.completed(WriteKind::kRecords, domain), operation.epoch()));
  }
  return {};
}

}  // namespace hep
