// SPDX-License-Identifier: Apache-2.0
// The same work by NCCL, which knows nothing of routing: its caller has packed the rows.
#include "bench_parts.h"

namespace perf {
namespace {

Case baseline(const Job& job, const char* operation) {
  Case description;
  description.operation = operation;
  description.bytes_per_row = job.row_bytes();
  return description;
}

// Rows that one rank sends another, in the order of its tokens.
std::vector<int32_t> tokens_between(const Job& job, int source, int target) {
  std::vector<int32_t> tokens;
  const std::vector<int32_t>& rows = job.routing().at(target).row_of_token[source];
  for (size_t token = 0; token < rows.size(); ++token) {
    if (rows[token] >= 0) tokens.push_back(static_cast<int32_t>(token));
  }
  return tokens;
}

}  // namespace

// Each rank receives its flat rows, in the order of the flat layout.
void Bench::run_all_to_all() {
  const NcclComm& nccl = *session_.nccl;
  const hepStream_t stream = session_.stream.get();
  const int64_t row_bytes = job_.row_bytes();
  std::vector<int32_t> starts;
  std::vector<size_t> send_bytes, receive_bytes;
  size_t received = 0;
  for (int peer = 0; peer < job_.num_ranks; ++peer) {
    const std::vector<int32_t> tokens = tokens_between(job_, rank_, peer);
    for (const int32_t token : tokens) starts.push_back(row_start(Matrix::kTokens, rank_, token));
    send_bytes.push_back(tokens.size() * row_bytes);
    receive_bytes.push_back(tokens_between(job_, peer, rank_).size() * row_bytes);
    received += receive_bytes.back();
  }
  const harness::Buffer packed(job_.backend, starts.size() * row_bytes);
  session_.rows(job_.format().type).fill(packed.data(), starts, job_.shape.hidden);
  const harness::Buffer rows = poisoned(job_.backend, received);
  const auto call = [&](int) {
    const char* from = packed.as<char>();
    char* to = rows.as<char>();
    nccl.begin_group();
    for (int peer = 0; peer < job_.num_ranks; ++peer) {
      if (send_bytes[peer] > 0) nccl.send(from, send_bytes[peer], peer, stream);
      if (receive_bytes[peer] > 0) nccl.receive(to, receive_bytes[peer], peer, stream);
      from += send_bytes[peer];
      to += receive_bytes[peer];
    }
    nccl.end_group();
  };
  meet();   // every rank has prepared
  call(0);  // NCCL connects at first use, which takes the host long
  session_.stream.synchronize();
  run_case(nullptr, passes_, baseline(job_, "nccl all-to-all"), call, [&] {
    return checker_.dispatch(hepLayoutFlat, job_.routing().at(rank_).num_rows(hepLayoutFlat), 0,
                             {rows.data(), nullptr, nullptr});
  });
}

// Each rank receives all tokens, of which only its flat rows count as moved.
void Bench::run_all_gather() {
  const int64_t bytes = job_.shape.tokens * job_.row_bytes();
  const harness::Buffer x(job_.backend, bytes);
  fill_tokens(x.data(), job_.shape.tokens);
  const harness::Buffer all = poisoned(job_.backend, bytes * job_.num_ranks);
  const auto call = [&](int) {
    session_.nccl->all_gather(x.data(), all.data(), bytes, session_.stream.get());
  };
  meet();
  call(0);
  session_.stream.synchronize();
  run_case(nullptr, passes_, baseline(job_, "nccl all-gather"), call,
           [&] { return checker_.all_tokens(all.data()); });
}

}  // namespace perf
