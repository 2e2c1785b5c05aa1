// SPDX-License-Identifier: Apache-2.0
// What is made of the answers of a CUDA driver, by a driver that a test has in hand.
#include "gpu/context_watch.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace hep {
namespace {

constexpr std::chrono::seconds kPatience{10};

struct Answers {
  std::atomic<CUresult> query{CUDA_SUCCESS};
  std::atomic<int> active{1};
  std::atomic<unsigned long long> id{7};
  std::atomic<int> queries{0}, records{0}, destroyed{0}, outside_of_relaxed_mode{0};
} answers;

thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

DriverTable make_driver() {
  DriverTable driver{};
  driver.DevicePrimaryCtxRelease = [](CUdevice) { return CUDA_SUCCESS; };
  driver.DevicePrimaryCtxGetState = [](CUdevice, unsigned int*, int* active) {
    *active = answers.active;
    return CUDA_SUCCESS;
  };
  driver.CtxGetId = [](CUcontext, unsigned long long* id) {
    *id = answers.id;
    return CUDA_SUCCESS;
  };
  driver.CtxPushCurrent = [](CUcontext) { return CUDA_SUCCESS; };
  driver.CtxPopCurrent = [](CUcontext*) { return CUDA_SUCCESS; };
  driver.ThreadExchangeStreamCaptureMode = [](CUstreamCaptureMode* mode) {
    std::swap(*mode, capture_mode);
    return CUDA_SUCCESS;
  };
  driver.StreamCreate = [](CUstream* stream, unsigned int) {
    *stream = reinterpret_cast<CUstream>(&answers);
    return CUDA_SUCCESS;
  };
  driver.EventCreate = [](CUevent* event, unsigned int) {
    *event = reinterpret_cast<CUevent>(&answers);
    return CUDA_SUCCESS;
  };
  driver.EventQuery = [](CUevent) {
    ++answers.queries;
    answers.outside_of_relaxed_mode += capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    return answers.query.load();
  };
  driver.EventRecord = [](CUevent, CUstream) {
    ++answers.records;
    return CUDA_SUCCESS;
  };
  driver.EventDestroy = [](CUevent) {
    ++answers.destroyed;
    return CUDA_SUCCESS;
  };
  driver.StreamDestroy = [](CUstream) {
    ++answers.destroyed;
    return CUDA_SUCCESS;
  };
  return driver;
}

class ContextWatchTest : public testing::Test {
 protected:
  ContextWatchTest() {
    answers.query = CUDA_SUCCESS;
    answers.active = 1;
    answers.id = 7;
    answers.queries = answers.records = answers.destroyed = answers.outside_of_relaxed_mode = 0;
    std::shared_ptr<DeviceContext> context;
    EXPECT_TRUE(DeviceContext::take(driver_, 3, nullptr, &context).ok());
    watch_ = std::make_unique<ContextWatch>();
    EXPECT_TRUE(watch_->start(context).ok());
  }

  static bool comes_true(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!condition() && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return condition();
  }

  void expect_death(const std::string& reason) {
    ASSERT_TRUE(comes_true([&] { return !watch_->status().ok(); }));
    const Status status = watch_->status();
    EXPECT_EQ(status.result(), hepErrorCuda);
    EXPECT_NE(status.message().find("device 3"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(reason), std::string::npos) << status.message();
  }

  const DriverTable driver_ = make_driver();
  std::unique_ptr<ContextWatch> watch_;
};

TEST_F(ContextWatchTest, RecordsAnEventThatHasPassedAnew) {
  EXPECT_TRUE(comes_true([] { return answers.records >= 2; }));
  EXPECT_TRUE(watch_->status().ok());
}

TEST_F(ContextWatchTest, WaitsForAnEventThatHasNotPassed) {
  answers.query = CUDA_ERROR_NOT_READY;
  EXPECT_TRUE(comes_true([] { return answers.queries >= 2; }));
  EXPECT_EQ(answers.records, 0);
  EXPECT_TRUE(watch_->status().ok());
}

TEST_F(ContextWatchTest, LeavesCapturesOfOtherThreadsAlone) {
  EXPECT_TRUE(comes_true([] { return answers.queries >= 1; }));
  EXPECT_EQ(answers.outside_of_relaxed_mode, 0);
}

TEST_F(ContextWatchTest, TellsOfAFault) {
  answers.query = CUDA_ERROR_ILLEGAL_ADDRESS;
  expect_death("cuEventQuery");
}

TEST_F(ContextWatchTest, TakesALackOfMemoryForNoDeath) {
  answers.query = CUDA_ERROR_OUT_OF_MEMORY;
  EXPECT_TRUE(comes_true([] { return answers.queries >= 2; }));
  EXPECT_TRUE(watch_->status().ok());
}

TEST_F(ContextWatchTest, TellsOfAReset) {
  answers.active = 0;
  expect_death("reset");
}

TEST_F(ContextWatchTest, TellsOfAResetAfterWhichTheDeviceIsUsedAgain) {
  answers.id = 8;
  expect_death("reset");
}

TEST_F(ContextWatchTest, FreesWhatItHasMade) {
  watch_.reset();
  EXPECT_EQ(answers.destroyed, 2);
}

TEST_F(ContextWatchTest, DoesNotFreeWhatWentWithTheContext) {
  answers.active = 0;
  watch_.reset();
  EXPECT_EQ(answers.destroyed, 0);
}

}  // namespace
}  // namespace hep
