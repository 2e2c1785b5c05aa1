// SPDX-License-Identifier: Apache-2.0
#include "gpu/context_watch.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <new>
#include <system_error>

#include "base/blocked_signals.h"
#include "base/thread_annotations.h"

namespace hep {
namespace {

// Pause between two looks. The second look after a fault sees it.
constexpr int kLookMs = 100;

// Knows whether CUDA may still be called. It may not while the process ends and CUDA goes away.
class LooksUntilExit {
 public:
  // This is never destroyed, because threads that look may outlive all else.
  static LooksUntilExit& instance() {
    static LooksUntilExit* const looks = new LooksUntilExit;
    return *looks;
  }

  void end() {
    mutex.lock();
    ended = true;
    mutex.unlock();
  }

  SharedMutex mutex;  // threads that look share it
  bool ended HEP_GUARDED_BY(mutex) = false;
};

struct EndAtExit {
  const pid_t process = ::getpid();

  ~EndAtExit() {
    if (process != ::getpid()) return;  // a forked child does not have the threads
    LooksUntilExit::instance().end();
  }
};

}  // namespace

ContextWatch::~ContextWatch() {
  if (process_ != ::getpid()) {  // in a forked child, which does not have the thread
    new std::thread(std::move(thread_));
    return;
  }
  if (thread_.joinable()) {
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  if (!context_ || !context_->check_not_reset().ok()) return;
  const CurrentContext current(*context_);
  if (event_ != nullptr) context_->driver().EventDestroy(event_);
  if (stream_ != nullptr) context_->driver().StreamDestroy(stream_);
}

Status ContextWatch::start(const std::shared_ptr<DeviceContext>& context) {
  static const EndAtExit end_at_exit;  // made after CUDA was started, so it goes before CUDA does
  context_ = context;
  const CurrentContext current(*context_);
  HEP_TRY(current.status());
  HEP_DRIVER_TRY(context_->driver(), StreamCreate, &stream_, CU_STREAM_NON_BLOCKING);
  HEP_DRIVER_TRY(context_->driver(), EventCreate, &event_, CU_EVENT_DISABLE_TIMING);
  return start_thread();
}

Status ContextWatch::start_thread() {
  wake_ = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return system_error("no eventfd for the thread that watches the device");
  const BlockedSignals blocked;
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& failure) {
    return error(hepErrorSystem, "no thread could be started that watches the device: %s",
                 failure.what());
  }
  return Status();
}

void ContextWatch::run() noexcept {
  LooksUntilExit& looks = LooksUntilExit::instance();
  while (!dead_.load(std::memory_order_relaxed)) {
    pollfd wake{wake_.get(), POLLIN, 0};
    ::poll(&wake, 1, kLookMs);
    if (wake.revents != 0) return;
    const SharedLock lock(looks.mutex);
    if (looks.ended) return;
    try {
      const Status found = look();
      // Without memory a look tells nothing of the context.
      if (found.ok() || found.result() == hepErrorOutOfMemory) continue;
      death_ = error(hepErrorCuda, "the CUDA context of device %d has died: %s", context_->device(),
                     found.message().c_str());
      dead_.store(true, std::memory_order_release);
    } catch (const std::bad_alloc&) {
      continue;  // try again when there may be memory
    }
  }
}

// An event that the device has yet to pass reports every fault in the context, whoever caused it.
// An event that it has passed reports nothing, so it is recorded anew.
Status ContextWatch::look() {
  HEP_TRY(context_->check_not_reset());
  const CurrentContext current(*context_);
  HEP_TRY(current.status());
  const DriverTable& driver = context_->driver();
  const OutsideOfCaptures outside(driver);
  const CUresult passed = driver.EventQuery(event_);
  if (passed == CUDA_ERROR_NOT_READY) return Status();
  HEP_TRY(driver_status(passed, "cuEventQuery"));
  HEP_DRIVER_TRY(driver, EventRecord, event_, stream_);
  return Status();
}

}  // namespace hep
