// SPDX-License-Identifier: Apache-2.0
// Failures in words: whatever the record holds as numbers, its sentence names.
#include "protocol/failure.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "protocol/call_summary.h"

namespace hep {
namespace {

struct Words {
  int32_t value;
  const char* word;  // in every sentence about it
};

constexpr Words kOperations[] = {{hepOperationRouting, "routing update 7"},
                                 {hepOperationDispatch, "dispatch 7"},
                                 {hepOperationCombine, "combine 7"}};
constexpr Words kPhases[] = {
    {hepPhaseBlocks, "blocks"},    {hepPhaseRecords, "records"}, {hepPhaseRows, "rows"},
    {hepPhaseWeights, "weights"},  {hepPhaseReaders, "read"},    {hepPhaseSlots, "slots"},
    {hepPhasePartials, "partial"}, {hepPhaseNetwork, "network"}, {hepPhaseLanding, "land"}};

hepFailure_t failure_of(hepResult_t result, int32_t operation, int32_t phase) {
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  failure.via_rank = -1;
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

TEST(FailureStatus, ARankOfAnotherDomainIsNamedWithTheRankByWayOfWhichItsSignalComes) {
  hepFailure_t failure = failure_of(hepErrorTimeout, hepOperationDispatch, hepPhaseLanding);
  failure.via_rank = 2;
  expect_words(failure_status(failure), hepErrorTimeout,
               {"waiting for rank 3, over the network by way of rank 2, to"});
}

TEST(FailureStatus, BlocksThatDoNotComeMayHaveNoRoom) {
  expect_words(failure_status(failure_of(hepErrorTimeout, hepOperationRouting, hepPhaseBlocks)),
               hepErrorTimeout, {"no room on the device"});
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

TEST(FailureStatus, ACallForAnotherUpdateNamesBothBatches) {
  hepFailure_t failure = failure_of(hepErrorInvalidUsage, hepOperationDispatch, hepPhaseNone);
  failure.expected = batch_word(64, 2);
  failure.seen = batch_word(65536, 32);
  expect_words(failure_status(failure), hepErrorInvalidUsage,
               {"rank 1", "dispatch 7", "64 tokens and top_k 2", "65536 tokens and top_k 32"});
}

TEST(FailureStatus, OfACallWithoutAnExecutedUpdateSaysThatThereIsNone) {
  hepFailure_t failure = failure_of(hepErrorInvalidUsage, hepOperationDispatch, hepPhaseNone);
  failure.result = hepErrorInvalidUsage;
  failure.expected = batch_word(64, 2);
  failure.seen = 0;
  expect_words(failure_status(failure), hepErrorInvalidUsage,
               {"64 tokens and top_k 2", "no update of its routing was executed"});
}

TEST(FailureStatus, OfABatchThatIsTooLargeForARoutingNamesBoth) {
  hepFailure_t failure = failure_of(hepErrorInvalidUsage, hepOperationDispatch, hepPhaseNone);
  failure.result = hepErrorMismatch;
  failure.operation = hepOperationRouting;
  failure.expected = batch_word(64, 2);
  failure.seen = batch_word(65, 1);
  expect_words(failure_status(failure), hepErrorMismatch,
               {"65 tokens and top_k 1", "at most 64 tokens and top_k 2"});
}

// ------------------------------------------------------------------------- calls that agree or not

hepDispatchArgs_t dispatch_call(bool gives_weights, bool gives_scales) {
  static float weights;
  hepDispatchArgs_t call = HEP_DISPATCH_ARGS_INITIALIZER;
  call.layout = hepLayoutExpertMajor;
  call.type = hepTypeFloat16;
  call.hidden = 7168;
  call.weights = gives_weights ? &weights : nullptr;
  call.scales = gives_scales ? &weights : nullptr;
  return call;
}

TEST(CallSummary, RanksWithTokensGiveWeightsAndScalesAllOrNone) {
  for (const bool weights : {false, true})
    for (const bool scales : {false, true}) {
      const uint64_t own = summary_of(dispatch_call(weights, scales), 5, 3);
      EXPECT_TRUE(alike(own, summary_of(dispatch_call(weights, scales), 1, 3)));
      EXPECT_FALSE(alike(own, summary_of(dispatch_call(!weights, scales), 1, 3)));
      EXPECT_FALSE(alike(own, summary_of(dispatch_call(weights, !scales), 1, 3)));
    }
}

TEST(CallSummary, EveryHiddenSizeIsTold) {
  for (const int hidden : {1, 7168, 7176, 65536}) {
    hepDispatchArgs_t own = dispatch_call(true, true);
    hepDispatchArgs_t theirs = own;
    own.hidden = hidden;
    theirs.hidden = hidden == 65536 ? 1 : hidden + 1;
    EXPECT_FALSE(alike(summary_of(own, 5, 3), summary_of(theirs, 5, 3)));
    const std::string words = describe_call(hepOperationDispatch, summary_of(own, 5, 3));
    EXPECT_NE(words.find("hidden " + std::to_string(hidden) + ","), std::string::npos) << words;
  }
}

TEST(CallSummary, RanksWithoutTokensGoWithAllOthers) {
  const uint64_t own = summary_of(dispatch_call(false, false), 0, 3);
  for (const bool weights : {false, true})
    for (const bool scales : {false, true}) {
      const uint64_t theirs = summary_of(dispatch_call(weights, scales), 1, 3);
      EXPECT_TRUE(alike(own, theirs));
      EXPECT_TRUE(alike(theirs, own));
    }
  EXPECT_FALSE(alike(own, summary_of(dispatch_call(false, false), 0, 4)));
}

TEST(CallSummary, RanksWithTokensOrRowsGiveGradientsAllOrNone) {
  static float numbers[2];
  const auto summary = [](bool gives, int tokens, int64_t rows, int64_t capacity = 4) {
    hepCombineArgs_t call = HEP_COMBINE_ARGS_INITIALIZER;
    call.capacity = capacity;
    call.row_gradients = gives ? numbers : nullptr;
    call.gradients = gives ? numbers + 1 : nullptr;
    return summary_of(call, tokens, rows, 3);
  };
  for (const bool gives : {false, true}) {
    const uint64_t own = summary(gives, 5, 7);
    EXPECT_TRUE(alike(own, summary(gives, 1, 0)));
    EXPECT_TRUE(alike(own, summary(gives, 0, 1)));
    EXPECT_FALSE(alike(own, summary(!gives, 1, 0)));
    EXPECT_FALSE(alike(own, summary(!gives, 0, 1)));
    EXPECT_TRUE(alike(own, summary(!gives, 0, 0)));
    EXPECT_TRUE(alike(own, summary(!gives, 0, 1, 0)));
  }
}

TEST(CallSummary, InWordsTellsEveryFieldOfBothOperations) {
  const std::string dispatch =
      describe_call(hepOperationDispatch, summary_of(dispatch_call(true, false), 1, 9));
  for (const char* word : {"expert-major", "hepTypeFloat16", "hidden 7168", "quantize none",
                           "with weights", "without scales", "update 9"})
    EXPECT_NE(dispatch.find(word), std::string::npos) << dispatch;
  hepCombineArgs_t call = HEP_COMBINE_ARGS_INITIALIZER;
  call.layout = hepLayoutFlat;
  call.type = hepTypeFloat32;
  call.partial_type = hepTypeBfloat16;
  call.weight_mode = hepWeightsRow;
  call.hidden = 48;
  const std::string combine = describe_call(hepOperationCombine, summary_of(call, 1, 0, 9));
  for (const char* word :
       {"flat", "type hepTypeFloat32", "hidden 48", "partial type hepTypeBfloat16",
        "weight mode row", "without gradients", "update 9"})
    EXPECT_NE(combine.find(word), std::string::npos) << combine;
}

}  // namespace
}  // namespace hep
