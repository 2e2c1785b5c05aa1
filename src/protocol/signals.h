// SPDX-License-Identifier: Apache-2.0
// What ranks tell each other in their windows, by numbers of operations.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"

namespace hep {

// What one peer tells this rank of its rows, in two sets: dispatches take turns.
struct RowsSignal {
  uint64_t ready;          // epoch of the dispatch whose rows are published, at `location`
  uint64_t location;       // the following are written before `ready`
  uint64_t has_weights;    // 1 if weights will be published
  uint64_t has_scales;     // cuda: 1 if scales will be published
  uint64_t call;           // the peer's call, as of call_summary.h
  uint64_t weights_ready;  // epoch of the dispatch whose weights (cuda: and scales) are published
};

// What one peer tells this rank of its outputs in combine, in two sets likewise.
struct OutputsSignal {
  uint64_t ready;     // epoch of the combine of which the following tells
  uint64_t location;  // cuda: where the outputs for this rank lie; kNotInWindow: it sends partials
  uint64_t num_rows;  // cuda: there
  uint64_t call;      // the peer's call
};

// What one peer tells this rank: slot [peer] of this rank's window, written by that peer alone.
// Each word is the epoch, counted from 1, of the latest operation of which it is true; `rows_read`
// and `slots_free` of the latest that waits for it.
struct Signals {
  uint64_t records_ready;    // host: the peer's records for this rank lie in this window
  RowsSignal rows[2];        // by the dispatch's epoch
  uint64_t rows_read;        // dispatch: the peer has read all it needs of this rank's rows
  uint64_t slots_free;       // combine: the peer has added up all that it was sent, or has read
  OutputsSignal outputs[2];  // by the combine's epoch
  uint64_t reserved;

  HEP_HOST_DEVICE RowsSignal& rows_of(uint64_t epoch) { return rows[epoch & 1]; }
  HEP_HOST_DEVICE const RowsSignal& rows_of(uint64_t epoch) const { return rows[epoch & 1]; }
  HEP_HOST_DEVICE OutputsSignal& outputs_of(uint64_t epoch) { return outputs[epoch & 1]; }
  HEP_HOST_DEVICE const OutputsSignal& outputs_of(uint64_t epoch) const {
    return outputs[epoch & 1];
  }
};
static_assert(sizeof(Signals) == 192);

}  // namespace hep
