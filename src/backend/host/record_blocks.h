// SPDX-License-Identifier: Apache-2.0
// Where the records of an update lie: those of a domain's ranks in each other's windows, those of
// other domains in blocks, one for each pair of rail peers.
#pragma once

#include <array>
#include <cstdint>

#include "backend/host/operation.h"
#include "backend/host/routing.h"
#include "base/status.h"
#include "protocol/network_layout.h"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep {

// The records of one source for one rank.
template <typename Header, typename Count, typename RowType, typename SelectionType>
struct RecordSections {
  Header* header;
  Count* counts;  // [EL]
  RowType* rows;
  SelectionType* selections;
};
using RecordsToWrite = RecordSections<RecordHeader, uint32_t, Row, Selection>;
using RecordsToRead =
    RecordSections<const RecordHeader, const uint32_t, const Row, const Selection>;

// How much this rank sends: rows and selections to each rank, rows to each domain.
struct RecordTotals {
  std::array<uint32_t, kMaxRanks> rank_rows{}, rank_selections{};
  std::array<uint32_t, kMaxDomains> domain_rows{};
};

// Lays out the blocks for the other domains, and where their parts will lie.
void begin_blocks(const Operation& operation, const RecordTotals& totals, HostRoutingState& state);

// The numbers of ranks that the rows for another domain go to.
uint8_t* num_ranks_in(const Operation& operation, int domain);

// Where the records for a rank belong. Those of another domain: after begin_blocks(), which has
// filled their headers.
RecordsToWrite records_to(const Operation& operation, int destination);

void send_blocks(const Operation& operation);

// Waits for the records of a source. Compares its K with this rank's, and its T with the room here.
Status await_records(const Operation& operation, int source, const HostRoutingState& state);

// Those of a source whose records have come.
RecordsToRead records_of(const Operation& operation, int source);

// Keeps what a dispatch and a combine need to know of the other domains.
void keep_blocks(const Operation& operation, HostRoutingState& state);

// Waits until the network has taken this rank's blocks.
Status await_blocks_sent(const Operation& operation);

}  // namespace hep
