// SPDX-License-Identifier: Apache-2.0
// What a rank tells of failures that come at the same time.
#include "peers/health.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace hep {
namespace {

// Keeps the first stop, as backends do, and lets a test come between.
class StoppedBackend final : public Backend {
 public:
  std::function<void()> before_stop;

  void stop(hepResult_t result) override {
    if (before_stop) std::exchange(before_stop, nullptr)();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (result_ == hepSuccess) result_ = result;
  }
  hepFailure_t failure() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    hepFailure_t failure = HEP_FAILURE_INITIALIZER;
    failure.result = result_;
    failure.missing_rank = -1;
    return failure;
  }

  Status create_routing(int, int, std::unique_ptr<BackendRouting>*) override { return Status(); }
  Status set_registered(const std::vector<RegisteredAddress>&) override { return Status(); }
  void peer_left(int) override {}
  BadIndex bad_index() const override { return {}; }
  Overflow overflow() const override { return {}; }

 private:
  mutable std::mutex mutex_;
  hepResult_t result_ = hepSuccess;
};

TEST(Health, GivesTheResultAndTheSentenceOfOneAndTheSameFailure) {
  StoppedBackend backend;
  std::unique_ptr<PeerMember> member;
  ASSERT_TRUE(PeerMember::open(1, {7, 7}, 0, &member).ok());
  Health health(0, 2, backend, *member);
  std::thread loss;
  backend.before_stop = [&] {
    std::promise<void> lost;
    std::future<void> done = lost.get_future();
    loss = std::thread([&health, lost = std::move(lost)]() mutable {
      health.peer_lost(1);
      lost.set_value();
    });
    done.wait_for(std::chrono::milliseconds(200));  // or the loss waits for the abort
  };
  health.abort();
  loss.join();
  const Status status = health.check();
  const bool tells_of_abort = status.message().find("aborted") != std::string::npos;
  EXPECT_EQ(status.result(), tells_of_abort ? hepErrorAborted : hepErrorPeerLost)
      << status.message();
}

}  // namespace
}  // namespace hep
