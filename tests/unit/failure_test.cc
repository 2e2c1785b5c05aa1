// SPDX-License-Identifier: Apache-2.0
// Failures in words: whatever the record holds as numbers, its sentence names.
#include "failure.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace hep {
namespace {

struct Words {
  int32_t value;
  const char* word;  // in every sentence about it
};

constexpr Words kOperations[] = {{hepOperationRouting, "routing update 7"},
                                 {hepOperationDispatch, "dispatch 7"},
                                 {hepOperationCombine, "combine 7"}};
constexpr Words kPhases[] = {{hepPhaseBlocks, "blocks"},   {hepPhaseRecords, "records"},
                             {hepPhaseRows, "rows"},       {hepPhaseWeights, "weights"},
                             {hepPhaseReaders, "read"},    {hepPhaseSlots, "slots"},
                             {hepPhasePartials, "partial"}};

hepFailure_t failure_of(hepResult_t result, int32_t operation, int32_t phase) {
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  failure.result = result;
  failure.operation = operation;
  failure.phase = phase;
  failure.rank = 1;
  failure.missing_rank = 3;
  failure.number = 7;
  failure.expected = 41;
  failure.seen = 29;
  return failure;
}

void expect_words(const Status& status, hepResult_t result, const std::vector<std::string>& words) {
  EXPECT_EQ(status.result(), result);
  for (const std::string& word : words)
    EXPECT_NE(status.message().find(word), std::string::npos)
        << "no \"" << word << "\" in: " << status.message();
}

TEST(FailureStatus, ATimeoutNamesOperationPhaseRanksAndSignals) {
  for (const Words& operation : kOperations)
    for (const Words& phase : kPhases)
      expect_words(failure_status(failure_of(hepErrorTimeout, operation.value, phase.value)),
                   hepErrorTimeout,
                   {"rank 1", operation.word, "timed out", "rank 3", phase.word, "41", "29"});
}

TEST(FailureStatus, AWaitThatEndedOtherwiseNamesOperationPhaseAndCause) {
  for (const hepResult_t result : {hepErrorTimeout, hepErrorAborted, hepErrorPeerLost})
    for (const Words& operation : kOperations)
      for (const Words& phase : kPhases)
        expect_words(
            failure_status(failure_of(result, operation.value, phase.value), "rank 5 is on fire"),
            result, {"rank 1", operation.word, phase.word, "rank 5 is on fire"});
}

TEST(FailureStatus, WithoutACauseTheMissingRankIsOne) {
  for (const Words& operation : kOperations)
    expect_words(failure_status(failure_of(hepErrorPeerLost, operation.value, hepPhaseRows)),
                 hepErrorPeerLost, {operation.word, "rows", "rank 3"});
}

TEST(FailureStatus, ACommunicatorAtRestHasNoOperationToName) {
  expect_words(failure_status(failure_of(hepErrorPeerLost, hepOperationNone, hepPhaseNone)),
               hepErrorPeerLost, {"rank 1", "rank 3"});
}

TEST(FailureStatus, AMismatchNamesBothTopK) {
  expect_words(failure_status(failure_of(hepErrorMismatch, hepOperationRouting, hepPhaseRecords)),
               hepErrorMismatch, {"rank 1", "routing update 7", "rank 3", "top_k", "41", "29"});
}

}  // namespace
}  // namespace hep
