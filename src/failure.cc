// SPDX-License-Identifier: Apache-2.0
#include "failure.h"

#include <cinttypes>

namespace hep {
namespace {

const char* operation_name(int32_t operation) {
  switch (operation) {
    case hepOperationRouting: return "routing update";
    case hepOperationDispatch: return "dispatch";
    case hepOperationCombine: return "combine";
    default: return "operation";
  }
}

const char* awaited(int32_t phase) {
  switch (phase) {
    case hepPhaseBlocks: return "finish the other blocks of the kernel";
    case hepPhaseRecords: return "send its routing records";
    case hepPhaseRows: return "publish its rows";
    case hepPhaseWeights: return "publish its weights";
    case hepPhaseReaders: return "read this rank's rows";
    case hepPhaseSlots: return "free its slots for partial sums";
    case hepPhasePartials: return "send its partial sums";
    default: return "go on";
  }
}

}  // namespace

Status failure_status(const hepFailure_t& failure) {
  switch (failure.result) {
    case hepSuccess: return Status();
    case hepErrorAborted:
      return error(hepErrorAborted, "rank %d: the communicator was aborted", failure.rank);
    case hepErrorTimeout:
      return error(hepErrorTimeout,
                   "rank %d: %s %" PRIu64
                   " timed out waiting for rank %d to %s: expected signal "
                   "%" PRIu64 ", saw %" PRIu64,
                   failure.rank, operation_name(failure.operation), failure.number,
                   failure.missing_rank, awaited(failure.phase), failure.expected, failure.seen);
    case hepErrorMismatch:
      return error(hepErrorMismatch,
                   "rank %d: routing update %" PRIu64 ": rank %d has top_k %" PRIu64
                   ", this rank %" PRIu64 "; it must be the same on all ranks",
                   failure.rank, failure.number, failure.missing_rank, failure.seen,
                   failure.expected);
    default:
      return error(hepErrorInternal, "rank %d: failure record with result %d", failure.rank,
                   failure.result);
  }
}

}  // namespace hep
