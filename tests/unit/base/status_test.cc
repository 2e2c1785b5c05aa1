// SPDX-License-Identifier: Apache-2.0
// The error idiom: sentences, propagation, the calling thread's last error.
#include "base/status.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <thread>

#include "base/result.h"

namespace hep {
namespace {

TEST(Status, IsSuccessByDefault) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.result(), hepSuccess);
  EXPECT_EQ(status.message(), "");
}

TEST(Status, CarriesResultAndSentence) {
  const Status status = error(hepErrorTimeout, "rank %d: waited %d ms for rank %d", 3, 500, 1);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.result(), hepErrorTimeout);
  EXPECT_EQ(status.message(), "rank 3: waited 500 ms for rank 1");
}

TEST(Status, SystemErrorEndsWithTheTextOfErrno) {
  errno = ENOENT;
  const Status status = system_error("cannot open %s", "window");
  EXPECT_EQ(status.result(), hepErrorSystem);
  EXPECT_EQ(status.message(), "cannot open window: No such file or directory");
  errno = ENOMEM;
  EXPECT_EQ(system_error("cannot map").result(), hepErrorOutOfMemory);
}

Status fail_or_pass(bool fail) {
  if (fail) return error(hepErrorSystem, "failed");
  return Status();
}

Status try_both(bool first, bool second, bool* reached_end) {
  HEP_TRY(fail_or_pass(first));
  HEP_TRY(fail_or_pass(second));
  *reached_end = true;
  return Status();
}

TEST(Status, TryReturnsTheFirstErrorAndGoesOnOtherwise) {
  bool reached_end = false;
  EXPECT_EQ(try_both(false, true, &reached_end).message(), "failed");
  EXPECT_FALSE(reached_end);
  EXPECT_TRUE(try_both(false, false, &reached_end).ok());
  EXPECT_TRUE(reached_end);
}

TEST(Result, IsEveryCodeThatHasANameAndNoOtherNumber) {
  for (int code = 0; code < 16; ++code) {
    const std::string name = hepGetErrorString(static_cast<hepResult_t>(code));
    EXPECT_EQ(is_result(code), name != "unknown result") << code;
  }
  for (const int64_t code : {int64_t{-1}, int64_t{16}, int64_t{1} << 32, INT64_MIN, INT64_MAX})
    EXPECT_FALSE(is_result(code)) << code;
}

TEST(Result, OfAFailureIsNeverSuccess) {
  EXPECT_EQ(failure_of(hepErrorTimeout), hepErrorTimeout);
  EXPECT_EQ(failure_of(hepErrorOverflow), hepErrorOverflow);
  for (const int64_t code : {int64_t{hepSuccess}, int64_t{-1}, int64_t{1000}, int64_t{1} << 32})
    EXPECT_EQ(failure_of(code), hepErrorInternal) << code;
}

TEST(SystemText, NamesTheLimitThatWasReached) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_NE(system_text(EMFILE).find("RLIMIT_NOFILE is " + std::to_string(limit.rlim_cur)),
            std::string::npos);
  EXPECT_EQ(system_text(ENOENT), "No such file or directory");
}

TEST(LastError, IsTheLatestFailureAndSurvivesSuccess) {
  EXPECT_EQ(report(error(hepErrorCuda, "first")), hepErrorCuda);
  EXPECT_EQ(report(error(hepErrorSystem, "second")), hepErrorSystem);
  EXPECT_EQ(report(Status()), hepSuccess);
  EXPECT_STREQ(last_error(), "second");
}

TEST(LastError, NeedsNoStatus) {
  EXPECT_EQ(report(hepErrorOutOfMemory, "no memory for a status"), hepErrorOutOfMemory);
  EXPECT_STREQ(last_error(), "no memory for a status");
  EXPECT_EQ(report(hepSuccess, ""), hepSuccess);
  EXPECT_STREQ(last_error(), "no memory for a status");
}

TEST(LastError, BelongsToTheThread) {
  report(error(hepErrorSystem, "of the main thread"));
  std::string at_start = "unset";
  std::string later = "unset";
  std::thread([&] {
    at_start = last_error();
    report(error(hepErrorSystem, "of the other thread"));
    later = last_error();
  }).join();
  EXPECT_EQ(at_start, "");
  EXPECT_EQ(later, "of the other thread");
  EXPECT_STREQ(last_error(), "of the main thread");
}

// A sentence of creation may name 72 ranks with a reason each.
TEST(LastError, KeepsALongSentenceWhole) {
  const std::string sentence = std::string(7000, 'x') + "y";
  report(Status(hepErrorSystem, sentence));
  EXPECT_EQ(last_error(), sentence);
}

TEST(LastError, KeepsTheBeginningOfAnOverlongSentenceAndShowsIt) {
  const std::string sentence(50000, 'x');
  report(Status(hepErrorSystem, sentence));
  const std::string kept = last_error();
  ASSERT_GE(kept.size(), 8000u);
  EXPECT_EQ(kept, std::string(kept.size() - 3, 'x') + "...");
}

}  // namespace
}  // namespace hep
