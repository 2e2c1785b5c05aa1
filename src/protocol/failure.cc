// SPDX-License-Identifier: Apache-2.0
#include "protocol/failure.h"

#include <cinttypes>

#include "protocol/call_summary.h"

namespace hep {
namespace {

std::string operation_of(const hepFailure_t& failure) {
  return operation_text(failure.operation, failure.number, failure.mode, failure.lane);
}

const char* awaited(int32_t phase) {
  switch (phase) {
    case hepPhaseBlocks:
      return "run the other blocks of the kernel, which may find no room on the device";
    case hepPhaseRecords: return "send its routing records";
    case hepPhaseRows: return "publish its rows";
    case hepPhaseWeights: return "publish its weights";
    case hepPhaseReaders: return "read this rank's rows";
    case hepPhaseSlots: return "free its slots for partial sums";
    case hepPhasePartials: return "send its partial sums";
    case hepPhaseNetwork: return "take what this rank sends over the network";
    case hepPhaseLanding: return "send its rows or partial sums, which land here";
    default: return "go on";
  }
}

const char* phase_name(int32_t phase) {
  switch (phase) {
    case hepPhaseBlocks: return "blocks";
    case hepPhaseRecords: return "records";
    case hepPhaseRows: return "rows";
    case hepPhaseWeights: return "weights";
    case hepPhaseReaders: return "readers";
    case hepPhaseSlots: return "slots";
    case hepPhasePartials: return "partials";
    case hepPhaseNetwork: return "network";
    case hepPhaseLanding: return "landing";
    default: return "none";
  }
}

// How the signal of a rank of another domain comes.
std::string way(const hepFailure_t& failure) {
  if (failure.via_rank < 0) return "";
  return ", over the network by way of rank " + std::to_string(failure.via_rank) + ",";
}

std::string default_cause(const hepFailure_t& failure) {
  if (failure.result == hepErrorAborted) return "the communicator was aborted";
  if (failure.missing_rank < 0) return "a peer failed";
  if (failure.result == hepErrorOutOfMemory)
    return "rank " + std::to_string(failure.missing_rank) + " has no memory left";
  return "rank " + std::to_string(failure.missing_rank) +
         (failure.result == hepErrorPeerLost ? " is gone" : " is missing");
}

// A wait, or a communicator at rest, that something else than its own timeout has ended.
Status ended_status(const hepFailure_t& failure, const std::string& cause) {
  const auto result = static_cast<hepResult_t>(failure.result);
  const std::string why = cause.empty() ? default_cause(failure) : cause;
  if (failure.operation == hepOperationNone)
    return error(result, "rank %d: %s", failure.rank, why.c_str());
  return error(result, "rank %d: %s was ended in phase '%s': %s", failure.rank,
               operation_of(failure).c_str(), phase_name(failure.phase), why.c_str());
}

}  // namespace

const char* operation_name(int32_t operation) {
  switch (operation) {
    case hepOperationRouting: return "routing update";
    case hepOperationDispatch: return "dispatch";
    case hepOperationCombine: return "combine";
    default: return "operation";
  }
}

std::string lane_name(int32_t mode, int32_t number) {
  return (mode == hepModeLowLatency ? "low-latency lane " : "lane ") + std::to_string(number);
}

std::string operation_text(int32_t operation, uint64_t number, int32_t mode, int32_t lane) {
  std::string text = std::string(operation_name(operation)) + " " + std::to_string(number);
  if (mode != hepModeThroughput || lane != 0) text += " of " + lane_name(mode, lane);
  return text;
}

Status failure_status(const hepFailure_t& failure, const std::string& cause) {
  switch (failure.result) {
    case hepSuccess: return Status();
    case hepErrorTimeout:
      if (!cause.empty() || failure.operation == hepOperationNone)
        return ended_status(failure, cause);
      return error(hepErrorTimeout,
                   "rank %d: %s timed out waiting for rank %d%s to %s: expected signal %" PRIu64
                   ", saw %" PRIu64,
                   failure.rank, operation_of(failure).c_str(), failure.missing_rank,
                   way(failure).c_str(), awaited(failure.phase), failure.expected, failure.seen);
    case hepErrorMismatch:
      if (!cause.empty()) return ended_status(failure, cause);
      if (failure.operation != hepOperationRouting)
        return error(
            hepErrorMismatch,
            "rank %d: %s: rank %d called it with %s; this rank with %s; all must be the same on "
            "all ranks",
            failure.rank, operation_of(failure).c_str(), failure.missing_rank,
            describe_call(failure.operation, failure.seen).c_str(),
            describe_call(failure.operation, failure.expected).c_str());
      if (failure.expected >> 32 != 0)
        return error(hepErrorMismatch,
                     "rank %d: %s: rank %d has %s, but the routing of this rank was made for at "
                     "most %s",
                     failure.rank, operation_of(failure).c_str(), failure.missing_rank,
                     describe_batch(failure.seen).c_str(),
                     describe_batch(failure.expected).c_str());
      return error(hepErrorMismatch,
                   "rank %d: %s: rank %d has top_k %" PRIu64 ", this rank %" PRIu64
                   "; it must be the same on all ranks",
                   failure.rank, operation_of(failure).c_str(), failure.missing_rank, failure.seen,
                   failure.expected);
    case hepErrorInvalidUsage:
      if (!cause.empty()) return ended_status(failure, cause);
      if (failure.seen == 0)
        return error(hepErrorInvalidUsage,
                     "rank %d: %s was called for %s, but no update of its routing was executed "
                     "before",
                     failure.rank, operation_of(failure).c_str(),
                     describe_batch(failure.expected).c_str());
      return error(hepErrorInvalidUsage,
                   "rank %d: %s was called for %s, but the update of its routing that was executed "
                   "before it had %s",
                   failure.rank, operation_of(failure).c_str(),
                   describe_batch(failure.expected).c_str(), describe_batch(failure.seen).c_str());
    default: return ended_status(failure, cause);
  }
}

}  // namespace hep
