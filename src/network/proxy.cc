// SPDX-License-Identifier: Apache-2.0
#include "network/proxy.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <system_error>
#include <utility>

#include "base/blocked_signals.h"
#include "base/fault_point.h"

namespace hep {
namespace {

using Clock = std::chrono::steady_clock;

// After the last thing that it had to do, a proxy looks without a pause, then lets others have its
// core between two looks, then sleeps, longer and longer.
constexpr std::chrono::microseconds kSpinning{20};
constexpr std::chrono::microseconds kYielding{1000};
constexpr std::chrono::microseconds kFirstSleep{5};

constexpr std::chrono::seconds kLongestSettle{1};

}  // namespace

Proxy::Proxy(std::vector<Transport*> transports, ProxyPlan plan, ProxyListener& listener,
             int poll_us)
    : engine_(std::move(transports), plan, listener), rank_(plan.rank), poll_us_(poll_us) {}

Proxy::~Proxy() {
  if (!thread_.joinable()) return;
  request([](Requests& requests) { requests.stop = true; });
  thread_.join();
}

Status Proxy::start() {
  {
    const Lock lock(mutex_);
    ended_ = false;
  }
  const BlockedSignals blocked;
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& failure) {
    return error(hepErrorSystem, "no thread could be started for the network: %s", failure.what());
  }
  return Status();
}

template <typename Change>
void Proxy::request(Change change) {
  const Lock lock(mutex_);
  change(requests_);
  has_requests_.store(true);
  changed_.notify_all();
}

void Proxy::peer_gone(int domain) {
  request([domain](Requests& requests) { requests.gone.push_back(domain); });
}

void Proxy::abort() {
  request([](Requests& requests) { requests.abort = true; });
}

// Either the proxy sees that it is woken before it sleeps, or this sees that it sleeps.
void Proxy::wake() {
  woken_.store(true);
  if (!asleep_.load()) return;
  const Lock lock(mutex_);
  changed_.notify_all();
}

void Proxy::settle() {
  uint64_t number = 0;
  request([&number](Requests& requests) { number = ++requests.settle; });
  const Clock::time_point end = Clock::now() + kLongestSettle;
  Lock lock(mutex_);
  while (!ended_ && settled_ < number)
    if (changed_.wait_until(lock.native(), end) == std::cv_status::timeout) return;
}

// Without memory nothing can be done, not even told.
void Proxy::run() noexcept {
  try {
    work();
  } catch (const std::exception& failure) {
    engine_.fail(-1, failure.what());
  }
  const Lock lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

void Proxy::work() {
  Clock::time_point last_work = Clock::now();
  std::chrono::microseconds pause = kFirstSleep;
  while (take_requests()) {
    if (const Status fault = fault_point("proxy", rank_); !fault.ok())
      return engine_.fail(-1, fault.message());
    if (engine_.step()) {
      last_work = Clock::now();
      pause = kFirstSleep;
      continue;
    }
    const auto idle = Clock::now() - last_work;
    if (idle < kSpinning) continue;
    if (idle < kYielding) {
      ::sched_yield();
    } else {
      sleep(pause);
      pause = std::min(2 * pause, std::chrono::microseconds(poll_us_));
    }
  }
}

// Whether to go on.
bool Proxy::take_requests() {
  if (!has_requests_.load(std::memory_order_relaxed)) return true;
  Requests taken;
  {
    const Lock lock(mutex_);
    has_requests_.store(false);
    taken.settle = requests_.settle;
    taken.abort = requests_.abort;
    taken.stop = requests_.stop;
    std::swap(taken.gone, requests_.gone);
  }
  for (const int domain : taken.gone) engine_.peer_gone(domain);
  if (taken.abort) engine_.drop_writes();
  engine_.poll_until_empty();
  const Lock lock(mutex_);
  settled_ = taken.settle;
  changed_.notify_all();
  return !taken.stop;
}

void Proxy::sleep(std::chrono::microseconds longest) {
  const Clock::time_point end = Clock::now() + longest;
  Lock lock(mutex_);
  asleep_.store(true);
  while (!woken_.load() && !has_requests_.load())
    if (changed_.wait_until(lock.native(), end) == std::cv_status::timeout) break;
  asleep_.store(false);
  woken_.store(false);
}

}  // namespace hep
