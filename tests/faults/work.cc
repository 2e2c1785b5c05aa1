// SPDX-License-Identifier: Apache-2.0
#include "work.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "harness/device.h"
#include "harness/update.h"
#include "oracle/reference.h"

namespace faults {
namespace {

constexpr int kExpertsPerRank = 2;

// Each token selects an expert of every rank, another one from token to token.
std::vector<int64_t> choices(int rank, int num_ranks) {
  std::vector<int64_t> ids;
  for (int token = 0; token < kTokens; ++token)
    for (int k = 0; k < num_ranks; ++k)
      ids.push_back(k * kExpertsPerRank + (rank + token + k) % kExpertsPerRank);
  return ids;
}

uint16_t element(int rank, int token, int h) {
  return reference::to_bfloat16(static_cast<float>((rank * 31 + token * 7 + h) % 64 - 20));
}

reference::Routing expected_routing(int num_ranks) {
  std::vector<reference::Batch> batches;
  for (int r = 0; r < num_ranks; ++r) batches.push_back({kTokens, choices(r, num_ranks)});
  return reference::Routing(kExpertsPerRank * num_ranks, num_ranks, 1, std::move(batches));
}

void require(hepResult_t result, const char* call) {
  if (result != hepSuccess) throw std::runtime_error(std::string(call) + ": " + hepGetLastError());
}

}  // namespace

hepConfig_t make_config(hepBackend_t backend, int num_ranks, Timeouts timeouts) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = backend;
  config.max_tokens = kTokens;
  config.hidden = kHidden;
  config.num_experts = kExpertsPerRank * num_ranks;
  config.max_top_k = num_ranks;
  config.init_timeout_ms = timeouts.init;
  config.timeout_ms = timeouts.operation;
  return config;
}

int count_devices() {
  const pid_t process = ::fork();
  if (process == 0) ::_exit(harness::device::count());
  int status = 0;
  ::waitpid(process, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

void take_gpu(hepBackend_t backend, int rank) {
  if (backend == hepBackendCuda) harness::device::set_current(rank);
}

Work::Work(hepBackend_t backend, int rank, int num_ranks)
    : backend_(backend), rank_(rank), num_ranks_(num_ranks), stream_(backend) {
  const std::vector<int64_t> ids = choices(rank, num_ranks);
  std::vector<uint16_t> x;
  for (int token = 0; token < kTokens; ++token)
    for (int h = 0; h < kHidden; ++h) x.push_back(element(rank, token, h));
  indices_ = harness::Buffer(backend, ids.size() * sizeof(int64_t));
  indices_.upload(ids.data(), indices_.bytes());
  x_ = harness::Buffer(backend, x.size() * sizeof(uint16_t));
  x_.upload(x.data(), x_.bytes());
  rows_ = harness::Buffer(backend, x_.bytes() * num_ranks);
  out_ = harness::Buffer(backend, x_.bytes());
}

Work::~Work() {
  if (comm_ != nullptr) end();
}

hepResult_t Work::start(const hepUniqueId_t& id, Timeouts timeouts) {
  const hepConfig_t config = make_config(backend_, num_ranks_, timeouts);
  const hepResult_t result = hepCommInitRank(&comm_, num_ranks_, &id, rank_, &config);
  if (result != hepSuccess) return result;
  return hepRoutingCreate(&routing_, comm_, nullptr);
}

hepResult_t Work::end() {
  graph_.reset();
  hepRoutingDestroy(routing_);
  routing_ = nullptr;
  const hepResult_t result = hepCommDestroy(comm_);
  comm_ = nullptr;
  return result;
}

hepResult_t Work::issue(hepOperation_t operation) {
  if (operation == hepOperationRouting)
    return harness::update_routing(routing_, indices_.data(), kTokens, num_ranks_, hepIndexInt64,
                                   stream_.get());
  if (operation == hepOperationDispatch) {
    hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
    args.layout = hepLayoutExpertMajor;
    args.x = x_.data();
    args.rows = rows_.data();
    args.capacity = int64_t{num_ranks_} * kTokens;
    return hepDispatch(routing_, &args, stream_.get());
  }
  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  args.layout = hepLayoutExpertMajor;
  args.weight_mode = hepWeightsNone;
  args.y = rows_.data();
  args.capacity = int64_t{num_ranks_} * kTokens;
  args.out = out_.data();
  return hepCombine(routing_, &args, stream_.get());
}

void Work::capture() {
  graph_ = std::make_unique<harness::Graph>();
  graph_->begin(stream_);
  for (const auto operation : {hepOperationRouting, hepOperationDispatch, hepOperationCombine})
    require(issue(operation), "a captured operation");
  graph_->end(stream_);
}

std::string Work::check_round() {
  rows_.fill(0xcb);
  out_.fill(0xcb);
  for (const auto operation : {hepOperationRouting, hepOperationDispatch, hepOperationCombine}) {
    require(issue(operation), "an operation of a round that must work");
    if (operation == hepOperationDispatch) synchronize();
  }
  synchronize();
  hepResult_t error = hepErrorInternal;
  require(hepCommGetAsyncError(comm_, &error), "hepCommGetAsyncError");
  require(error, "a round that must work");

  const reference::Routing routing = expected_routing(num_ranks_);
  const reference::Arrivals& arrivals = routing.at(rank_);
  std::vector<uint16_t> rows(rows_.bytes() / sizeof(uint16_t)), out(out_.bytes() / 2);
  rows_.download(rows.data(), rows_.bytes());
  out_.download(out.data(), out_.bytes());
  for (int64_t place = 0; place < arrivals.num_rows(hepLayoutExpertMajor); ++place) {
    const reference::Row row = reference::row_at(arrivals, hepLayoutExpertMajor, place);
    for (int h = 0; h < kHidden; ++h)
      if (rows[place * kHidden + h] != element(row.source, row.token, h))
        return "row " + std::to_string(place) + " is not the oracle's";
  }
  // What came back is the sum of num_ranks equal rows.
  for (int token = 0; token < kTokens; ++token)
    for (int h = 0; h < kHidden; ++h) {
      const float value = reference::from_bfloat16(element(rank_, token, h));
      const uint16_t expected = reference::to_bfloat16(static_cast<float>(num_ranks_) * value);
      if (reference::from_bfloat16(out[token * kHidden + h]) != reference::from_bfloat16(expected))
        return "token " + std::to_string(token) + " came back wrong";
    }
  return "";
}

}  // namespace faults
