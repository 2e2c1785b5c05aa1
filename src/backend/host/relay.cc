// SPDX-License-Identifier: Apache-2.0
#include "backend/host/relay.h"

#include <algorithm>
#include <cstring>

#include "backend/host/float_environment.h"
#include "backend/host/signal.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/data_type.h"

namespace hep {
namespace {

uint64_t part_bytes_of(const hepCombineArgs_t& args) {
  return uint64_t(args.hidden) * element_bytes(args.partial_type);
}

// Rows of a chunk of a stream of so many rows.
int rows_of_chunk(const RingShape& ring, uint32_t num_rows, int chunk) {
  return std::min<int>(ring.rows, static_cast<int>(num_rows) - chunk * ring.rows);
}

}  // namespace

void begin_network_combine(const Operation& operation, uint64_t call,
                           const HostRoutingState& state) {
  Rail& rail = *operation.rail();
  const uint64_t epoch = operation.epoch(), parity = epoch & 1;
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    rail.parts_due[domain] +=
        operation.network().part_ring.num_chunks(state.source_domain_rows[rail.peer(domain)]);
    *at<NetworkCall>(operation.own_window(), operation.network().call_out_at(
                                                 epoch, rail.index_of(domain))) = {epoch, call, {}};
    rail.send(WriteKind::kCall, domain, parity, parity, sizeof(NetworkCall));
  }
}

// ---------------------------------------------------------------------------------- to the relays

RelayWriter::RelayWriter(const Operation& operation, const HostRoutingState& state)
    : operation_(operation), state_(state) {
  for (int i = 0; i < operation.num_remote(); ++i)
    num_chunks_ = std::max(num_chunks_, chunks_of(operation.remote_in_turn(i)));
}

int RelayWriter::chunks_of(int source) const {
  return operation_.network().part_ring.num_chunks(state_.source_domain_rows[source]);
}

Status RelayWriter::begin(int source, int chunk) {
  const Rail& rail = *operation_.rail();
  const NetworkLayout& network = operation_.network();
  const int relay = rail.via(source), domain = operation_.topology().domain_of(source);
  const uint64_t number = rail.relay_sent[source], slots = network.part_ring.slots;
  source_ = source;
  first_ = chunk * network.part_ring.rows;
  end_ = first_ + network.part_ring.rows;
  chunk_ =
      at<char>(operation_.window(relay), network.relay_chunk_at(rail.index_of(domain), number));
  if (number < slots) return {};
  return operation_.wait(hepPhaseSlots, relay,
                         *at<uint64_t>(operation_.window(relay), network.relayed_at(domain)),
                         number + 1 - slots);
}

void* RelayWriter::partial(const Row& row) const {
  const uint64_t slot =
      uint64_t(row.position - first_) * operation_.network().max_relayed + row.ordinal;
  return at<char>(chunk_, slot * operation_.shape().partial_row_bytes);
}

float* RelayWriter::gradients(const Row& row) const {
  return at<float>(chunk_, operation_.network().relay_gradients) +
         int64_t{row.position - first_} * state_.top_k();
}

void RelayWriter::end() {
  Rail& rail = *operation_.rail();
  const int domain = operation_.topology().domain_of(source_);
  store_release(at<uint64_t>(operation_.window(rail.via(source_)),
                             operation_.network().relayed_by_at(
                                 domain, operation_.number_of(operation_.rank()))),
                ++rail.relay_sent[source_]);
}

// ------------------------------------------------------------------------------------- the relay

Relay::Relay(const Operation& operation, const RowArithmetic& arithmetic,
             const hepCombineArgs_t& args, const HostRoutingState& state)
    : operation_(operation),
      state_(state),
      sum_(arithmetic.sum_rows(args.partial_type, args.partial_type)),
      columns_(static_cast<int>(args.hidden)),
      part_bytes_(part_bytes_of(args)),
      call_(combine_call(args, state)),
      takes_gradients_(args.gradients != nullptr || args.row_gradients != nullptr) {}

Status Relay::step(bool* worked) {
  const DefaultFloatEnvironment environment;
  const Rail& rail = *operation_.rail();
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    while (next_chunk_[domain] < chunks_of(domain) && may_send(domain)) {
      HEP_TRY(relay_chunk(domain));
      *worked = true;
    }
  }
  return {};
}

bool Relay::is_done() const {
  const Rail& rail = *operation_.rail();
  for (int i = 0; i < rail.num_others(); ++i)
    if (next_chunk_[rail.in_turn(i)] < chunks_of(rail.in_turn(i))) return false;
  return true;
}

int Relay::chunks_of(int domain) const {
  const int source = operation_.rail()->peer(domain);
  return operation_.network().part_ring.num_chunks(state_.source_domain_rows[source]);
}

// The rail peer has room, the network has read the slot, and all ranks have sent their sums.
bool Relay::may_send(int domain) const {
  const Rail& rail = *operation_.rail();
  const uint64_t number = rail.parts_sent[domain];
  const uint64_t slots = operation_.network().part_ring.slots;
  return load_acquire(&rail.arrived(operation_.rank(), WriteKind::kCall, domain)) >=
             operation_.epoch() &&
         load_acquire(&rail.completed(WriteKind::kParts, domain)) + slots > number &&
         is_complete(domain, number);
}

bool Relay::is_complete(int domain, uint64_t number) const {
  for (int i = 0; i < operation_.domain_size(); ++i)
    if (load_acquire(at<uint64_t>(operation_.own_window(),
                                  operation_.network().relayed_by_at(domain, i))) <= number)
      return false;
  return true;
}

const NetworkCall& Relay::call_of(int domain) const {
  return *at<NetworkCall>(
      operation_.own_window(),
      operation_.network().call_in_at(operation_.epoch(), operation_.rail()->index_of(domain)));
}

// No part is made of sums that were called otherwise. A rank tells its call before it sends its
// sums.
Status Relay::compare_calls(int domain) const {
  for (int rank = operation_.first_local(); rank < operation_.end_local(); ++rank)
    HEP_TRY(operation_.compare_calls(hepPhasePartials, rank, call_,
                                     operation_.from(rank).outputs_of(operation_.epoch()).call));
  return operation_.compare_calls(hepPhaseLanding, operation_.rail()->peer(domain), call_,
                                  call_of(domain).call);
}

Status Relay::relay_chunk(int domain) {
  Rail& rail = *operation_.rail();
  const NetworkLayout& network = operation_.network();
  const int index = rail.index_of(domain), chunk = next_chunk_[domain];
  HEP_TRY(compare_calls(domain));
  const uint64_t number = rail.parts_sent[domain];
  const uint64_t bytes = add_up(
      domain, chunk, at<char>(operation_.own_window(), network.relay_chunk_at(index, number)),
      at<char>(operation_.own_window(), network.part_chunk_out_at(index, number)));
  const uint64_t target = network.first_part_of(operation_.epoch(), operation_.shape().sets) +
                          state_.rail_first_parts[domain] + chunk * network.part_ring.rows;
  ++next_chunk_[domain];
  ++rail.parts_sent[domain];
  rail.post(WriteKind::kParts, domain, network.part_ring.slot_of(number), target, bytes);
  // Last: then the combine may end.
  store_release(at<uint64_t>(operation_.own_window(), network.relayed_at(domain)), number + 1);
  return {};
}

// Returns the bytes of the chunk: its rows, then their gradients, whose room in the relay is zero
// again.
uint64_t Relay::add_up(int domain, int chunk, void* sums, void* out) const {
  const NetworkLayout& network = operation_.network();
  const int source = operation_.rail()->peer(domain);
  const int num_rows = rows_of_chunk(network.part_ring, state_.source_domain_rows[source], chunk);
  const uint8_t* num_ranks = state_.rail_ranks_of(domain) + chunk * network.part_ring.rows;
  std::array<WeightedRow, kMaxTopK> rows;
  for (int i = 0; i < num_rows; ++i) {
    const uint64_t first = uint64_t(i) * network.max_relayed;
    for (int ordinal = 0; ordinal < num_ranks[i]; ++ordinal)
      rows[ordinal] = {at<char>(sums, (first + ordinal) * operation_.shape().partial_row_bytes),
                       1.0f};
    sum_(rows.data(), num_ranks[i], columns_, at<char>(out, i * part_bytes_));
  }
  const uint64_t bytes = num_rows * part_bytes_;
  const int64_t entries = int64_t{num_rows} * state_.top_k();
  auto* gradients = at<float>(sums, network.relay_gradients);
  const bool gives = given_in(call_of(domain).call, kFirstGivenBit) == Given::kYes;
  if (gives) std::copy_n(gradients, entries, at<float>(out, bytes));
  if (gives || takes_gradients_) std::fill_n(gradients, entries, 0.0f);
  return bytes + (gives ? entries * sizeof(float) : 0);
}

void RelayStation::begin(const Operation& operation, const RowArithmetic& arithmetic,
                         const hepCombineArgs_t& args, const HostRoutingState& state) {
  const Lock lock(mutex_);
  relay_.emplace(operation, arithmetic, args, state);
}

void RelayStation::cancel(const HostRoutingState& state) {
  const Lock lock(mutex_);
  if (relay_ && relay_->is_of(state)) relay_.reset();
}

bool RelayStation::work() {
  const Lock lock(mutex_);
  if (!relay_) return false;
  bool worked = false;
  const Status status = relay_->step(&worked);
  if (!status.ok()) relay_->end_waits(status.result());
  if (!status.ok() || relay_->is_done()) relay_.reset();
  return worked;
}

Status await_relay(const Operation& operation) {
  const Rail& rail = *operation.rail();
  const NetworkLayout& network = operation.network();
  const auto word = [&](uint64_t offset) -> const uint64_t& {
    return *at<uint64_t>(operation.own_window(), offset);
  };
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i), peer = rail.peer(domain);
    const uint64_t all = rail.parts_due[domain];
    HEP_TRY(operation.wait(hepPhaseLanding, peer,
                           rail.arrived(operation.rank(), WriteKind::kCall, domain),
                           operation.epoch()));
    for (int rank = operation.first_local(); rank < operation.end_local(); ++rank)
      HEP_TRY(operation.wait(hepPhasePartials, rank,
                             word(network.relayed_by_at(domain, operation.number_of(rank))), all));
    HEP_TRY(operation.wait(hepPhaseNetwork, peer, word(network.relayed_at(domain)), all));
    HEP_TRY(operation.wait(hepPhaseNetwork, peer, rail.completed(WriteKind::kParts, domain), all));
    HEP_TRY(operation.wait(hepPhaseNetwork, peer, rail.completed(WriteKind::kCall, domain),
                           operation.epoch()));
  }
  return {};
}

// -------------------------------------------------------------------------------------- the parts

Parts::Parts(const Operation& operation, const hepCombineArgs_t& args,
             const HostRoutingState& state)
    : operation_(operation), state_(state), part_bytes_(part_bytes_of(args)) {}

// `count`: of the chunks of this combine.
Status Parts::await_chunks(int domain, int count) const {
  const Rail& rail = *operation_.rail();
  return operation_.wait(hepPhaseLanding, rail.peer(domain),
                         rail.arrived(operation_.rank(), WriteKind::kParts, domain),
                         rail.parts_taken[domain] + count);
}

Status Parts::await(int64_t token) const {
  const int rows = operation_.network().part_ring.rows;
  for (int i = 0; i < state_.part_counts[token]; ++i) {
    const RemotePart& part = state_.parts_of(token)[i];
    HEP_TRY(await_chunks(part.domain, part.position / rows + 1));
  }
  return {};
}

Status Parts::await_all() const {
  Rail& rail = *operation_.rail();
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    const int chunks = operation_.network().part_ring.num_chunks(state_.part_rows[domain]);
    HEP_TRY(await_chunks(domain, chunks));
    rail.parts_taken[domain] += chunks;
  }
  return {};
}

Parts::Chunk Parts::chunk_of(const RemotePart& part) const {
  const NetworkLayout& network = operation_.network();
  const int rows = network.part_ring.rows, chunk = part.position / rows;
  const uint64_t place = network.first_part_of(operation_.epoch(), operation_.shape().sets) +
                         state_.first_parts[part.domain] + chunk * rows;
  return {at<char>(operation_.own_window(), network.parts + place * network.part_row_stride),
          part.position % rows,
          rows_of_chunk(network.part_ring, state_.part_rows[part.domain], chunk)};
}

const void* Parts::row(const RemotePart& part) const {
  const Chunk chunk = chunk_of(part);
  return chunk.base + chunk.row * part_bytes_;
}

const float* Parts::gradients(const RemotePart& part) const {
  const Chunk chunk = chunk_of(part);
  return at<float>(chunk.base, chunk.num_rows * part_bytes_) + int64_t{chunk.row} * state_.top_k();
}

}  // namespace hep
