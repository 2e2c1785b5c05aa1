// SPDX-License-Identifier: Apache-2.0
// Messages: which are delivered, and to whom.
#include "base/log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace hep {
namespace {

struct Received {
  std::mutex mutex;
  std::vector<std::pair<hepLogLevel_t, std::string>> messages;
};

void receive(hepLogLevel_t level, const char* message, void* context) {
  Received* received = static_cast<Received*>(context);
  const std::lock_guard<std::mutex> lock(received->mutex);
  received->messages.emplace_back(level, message);
}

class Log : public ::testing::Test {
 protected:
  void SetUp() override { set_log_level(hepLogInfo); }

  Received received_;
};

TEST_F(Log, MessagesUpToTheLevelReachTheCallbackWithTheirText) {
  LogCallback callback;
  callback.set(receive, &received_);
  log_message(hepLogError, "rank %d failed", 3);
  log_message(hepLogInfo, "backend %s", "host");
  ASSERT_EQ(received_.messages.size(), 2u);
  EXPECT_EQ(received_.messages[0].first, hepLogError);
  EXPECT_EQ(received_.messages[0].second, "rank 3 failed");
  EXPECT_EQ(received_.messages[1].first, hepLogInfo);
  EXPECT_EQ(received_.messages[1].second, "backend host");
}

TEST_F(Log, MessagesPastTheLevelAreNotDelivered) {
  LogCallback callback;
  callback.set(receive, &received_);
  EXPECT_FALSE(log_enabled(hepLogDebug));
  log_message(hepLogDebug, "too detailed");
  EXPECT_TRUE(received_.messages.empty());
}

TEST_F(Log, AnotherLevelHoldsFromThenOn) {
  LogCallback callback;
  callback.set(receive, &received_);
  set_log_level(hepLogDebug);
  log_message(hepLogDebug, "detailed");
  set_log_level(hepLogNone);
  log_message(hepLogError, "unwanted");
  ASSERT_EQ(received_.messages.size(), 1u);
  EXPECT_EQ(received_.messages[0].second, "detailed");
}

TEST_F(Log, WithoutACallbackMessagesGoToStandardErrorWithNameAndLevel) {
  testing::internal::CaptureStderr();
  log_message(hepLogWarning, "no %s", "fabric");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "hybridep: warning: no fabric\n");
}

TEST_F(Log, TheLatestCallbackReceivesAllMessagesUntilItGoes) {
  Received of_latest;
  LogCallback first;
  first.set(receive, &received_);
  {
    LogCallback latest;
    latest.set(receive, &of_latest);
    log_message(hepLogError, "one");
    EXPECT_EQ(received_.messages.size(), 0u);
    EXPECT_EQ(of_latest.messages.size(), 1u);
  }
  log_message(hepLogError, "two");
  EXPECT_EQ(received_.messages.size(), 1u);
  EXPECT_EQ(of_latest.messages.size(), 1u);
}

TEST_F(Log, AnEarlierCallbackThatGoesLeavesTheLatestInPlace) {
  Received of_first;
  auto first = std::make_unique<LogCallback>();
  first->set(receive, &of_first);
  LogCallback latest;
  latest.set(receive, &received_);
  first.reset();
  log_message(hepLogError, "one");
  EXPECT_EQ(of_first.messages.size(), 0u);
  EXPECT_EQ(received_.messages.size(), 1u);
}

TEST_F(Log, ACallbackThatTwoOwnersShareStaysUntilBothHaveGone) {
  auto one = std::make_unique<LogCallback>(), other = std::make_unique<LogCallback>();
  one->set(receive, &received_);
  other->set(receive, &received_);
  other.reset();
  log_message(hepLogError, "still delivered");
  EXPECT_EQ(received_.messages.size(), 1u);
  one.reset();
  testing::internal::CaptureStderr();
  log_message(hepLogError, "back to standard error");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "hybridep: error: back to standard error\n");
  EXPECT_EQ(received_.messages.size(), 1u);
}

TEST_F(Log, NoCallbackChangesNothing) {
  LogCallback first, none;
  first.set(receive, &received_);
  none.set(nullptr, nullptr);
  log_message(hepLogError, "delivered");
  EXPECT_EQ(received_.messages.size(), 1u);
}

TEST_F(Log, AnOverlongMessageIsCut) {
  LogCallback callback;
  callback.set(receive, &received_);
  const std::string text(5000, 'x');
  log_message(hepLogError, "%s", text.c_str());
  ASSERT_EQ(received_.messages.size(), 1u);
  EXPECT_EQ(received_.messages[0].second, std::string(1023, 'x'));
}

struct Replacement {
  LogCallback* callback;
  Received* received;
};

void log_again(hepLogLevel_t level, const char*, void* context) {
  const Replacement& replacement = *static_cast<Replacement*>(context);
  replacement.callback->set(receive, replacement.received);
  log_message(level, "from inside");
}

TEST_F(Log, ACallbackMayLogAndReplaceItself) {
  LogCallback second;
  Replacement replacement{&second, &received_};
  LogCallback first;
  first.set(log_again, &replacement);
  log_message(hepLogError, "from outside");
  ASSERT_EQ(received_.messages.size(), 1u);
  EXPECT_EQ(received_.messages[0].second, "from inside");
}

// A callback that takes its time, and says so.
struct Slow {
  std::mutex mutex;
  std::condition_variable changed;
  bool entered = false, may_leave = false;
  std::atomic<bool> left{false};
};

void receive_slowly(hepLogLevel_t, const char*, void* context) {
  Slow& slow = *static_cast<Slow*>(context);
  std::unique_lock<std::mutex> lock(slow.mutex);
  slow.entered = true;
  slow.changed.notify_all();
  slow.changed.wait(lock, [&] { return slow.may_leave; });
  slow.left = true;
}

TEST_F(Log, ACallbackThatGoesWaitsForTheMessageThatAnotherThreadDelivers) {
  Slow slow;
  auto callback = std::make_unique<LogCallback>();
  callback->set(receive_slowly, &slow);
  std::thread logger([] { log_message(hepLogError, "slow"); });
  {
    std::unique_lock<std::mutex> lock(slow.mutex);
    slow.changed.wait(lock, [&] { return slow.entered; });
  }
  std::thread allower([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const std::lock_guard<std::mutex> lock(slow.mutex);
    slow.may_leave = true;
    slow.changed.notify_all();
  });
  callback.reset();
  EXPECT_TRUE(slow.left);
  logger.join();
  allower.join();
}

void destroy_callback(hepLogLevel_t, const char*, void* context) {
  static_cast<std::unique_ptr<LogCallback>*>(context)->reset();
}

TEST_F(Log, ACallbackMayEndItself) {
  auto callback = std::make_unique<LogCallback>();
  callback->set(destroy_callback, &callback);
  log_message(hepLogError, "the last one");
  EXPECT_EQ(callback, nullptr);
}

TEST_F(Log, NoMessageOfManyThreadsIsLostOrMixed) {
  constexpr int kThreads = 4, kMessages = 500;
  LogCallback callback;
  callback.set(receive, &received_);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([] {
      for (int i = 0; i < kMessages; ++i) log_message(hepLogInfo, "%d and %s", 12345, "words");
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(received_.messages.size(), size_t{kThreads} * kMessages);
  for (const auto& message : received_.messages) EXPECT_EQ(message.second, "12345 and words");
}

}  // namespace
}  // namespace hep
