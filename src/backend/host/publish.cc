// SPDX-License-Identifier: Apache-2.0
// The first half of dispatch: every rank publishes its tokens, with their scales and weights, in
// its window.
#include <algorithm>
#include <cstring>

#include "backend/host/routing.h"
#include "backend/host/row_arithmetic.h"
#include "backend/host/signal.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/data_type.h"
#include "protocol/records.h"
#include "protocol/signals.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

void quantize_rows(const Operation& operation, const RowArithmetic& arithmetic,
                   const hepDispatchArgs_t& args, int num_tokens) {
  const int hidden = static_cast<int>(args.hidden);
  const WindowLayout& layout = operation.layout();
  for (int64_t token = 0; token < num_tokens; ++token)
    arithmetic.quantize_row(
        static_cast<const uint16_t*>(args.x) + token * hidden, hidden, args.quantize,
        at<uint8_t>(operation.own_window(),
                    layout.published_by(operation.epoch()) + token * hidden),
        at<char>(operation.own_window(), layout.scales_at(operation.epoch(), token)),
        operation.shape().scale_bytes);
}

void copy_scales(const Operation& operation, const void* scales, int num_tokens) {
  const int64_t bytes = operation.shape().scale_bytes;
  for (int64_t token = 0; token < num_tokens; ++token)
    std::memcpy(
        at<char>(operation.own_window(), operation.layout().scales_at(operation.epoch(), token)),
        at<char>(scales, token * bytes), bytes);
}

// Returns where the rows lie in the window.
uint64_t publish_rows(const Operation& operation, const RowArithmetic& arithmetic,
                      const hepDispatchArgs_t& args, bool x_in_place, int num_tokens) {
  char* window = static_cast<char*>(operation.own_window());
  if (args.scales != nullptr) copy_scales(operation, args.scales, num_tokens);
  if (x_in_place) return static_cast<const char*>(args.x) - window;
  const uint64_t rows = operation.layout().published_by(operation.epoch());
  const uint64_t row_bytes = static_cast<uint64_t>(args.hidden) * element_bytes(args.type);
  if (args.quantize != hepQuantizeNone)
    quantize_rows(operation, arithmetic, args, num_tokens);
  else if (num_tokens > 0)
    std::memcpy(window + rows, args.x, num_tokens * row_bytes);
  return rows;
}

void publish_weights(const Operation& operation, const hepDispatchArgs_t& args,
                     const HostRoutingState& state) {
  auto* published = at<float>(operation.own_window(),
                              operation.layout().weights_at(operation.epoch(), 0, state.top_k()));
  const int64_t count = int64_t{state.num_tokens()} * state.top_k();
  if (args.dense_weights == nullptr) {
    std::copy_n(args.weights, count, published);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t expert = state.own_experts[i];
    if (expert != kNoExpert)
      published[i] = args.dense_weights[i / state.top_k() * operation.shape().num_experts + expert];
  }
}

}  // namespace

Status publish(const Operation& operation, const RowArithmetic& arithmetic,
               const hepDispatchArgs_t& args, bool x_in_place, const HostRoutingState& state) {
  HEP_TRY(wait_for_readers(operation, operation.epoch() - 1));
  const uint64_t place = publish_rows(operation, arithmetic, args, x_in_place, state.num_tokens());
  for (int peer = operation.first_local(); peer < operation.end_local(); ++peer) {
    RowsSignal& to = operation.to(peer).rows_of(operation.epoch());
    to.location = place;
    to.has_weights = args.weights != nullptr;
    to.call = summary_of(args, state.num_tokens(), state.totals->update);
    store_release(&to.ready, operation.epoch());
  }

  if (args.weights == nullptr) return {};
  publish_weights(operation, args, state);
  for (int peer = operation.first_local(); peer < operation.end_local(); ++peer)
    store_release(&operation.to(peer).rows_of(operation.epoch()).weights_ready, operation.epoch());
  return {};
}

}  // namespace hep
