// SPDX-License-Identifier: Apache-2.0
// A mutex and locks that the compiler can check. Clang's -Wthread-safety checks that guarded state
// is used under its mutex only. Other compilers see no attributes.
#pragma once

#include <mutex>
#include <shared_mutex>

#ifdef __clang__
#define HEP_THREAD_ATTRIBUTE(x) __attribute__((x))
#else
#define HEP_THREAD_ATTRIBUTE(x)
#endif

// Attributes of a type: it is a mutex; its object holds a mutex as long as it lives.
#define HEP_CAPABILITY(name) HEP_THREAD_ATTRIBUTE(capability(name))
#define HEP_SCOPED_CAPABILITY HEP_THREAD_ATTRIBUTE(scoped_lockable)

// Attribute of data: the mutex guards it.
#define HEP_GUARDED_BY(mutex) HEP_THREAD_ATTRIBUTE(guarded_by(mutex))

// Attributes of a function: its caller holds the mutex; its caller does not hold it.
#define HEP_REQUIRES(...) HEP_THREAD_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define HEP_EXCLUDES(...) HEP_THREAD_ATTRIBUTE(locks_excluded(__VA_ARGS__))

// Attributes of a function: it takes the mutex; it releases the mutex.
#define HEP_ACQUIRE(...) HEP_THREAD_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define HEP_ACQUIRE_SHARED(...) HEP_THREAD_ATTRIBUTE(acquire_shared_capability(__VA_ARGS__))
#define HEP_RELEASE(...) HEP_THREAD_ATTRIBUTE(release_capability(__VA_ARGS__))
#define HEP_RELEASE_SHARED(...) HEP_THREAD_ATTRIBUTE(release_shared_capability(__VA_ARGS__))
#define HEP_RETURN_CAPABILITY(mutex) HEP_THREAD_ATTRIBUTE(lock_returned(mutex))

// Attribute of a function that clang cannot follow. A comment beside the function says why it is
// right.
#define HEP_NO_THREAD_SAFETY_ANALYSIS HEP_THREAD_ATTRIBUTE(no_thread_safety_analysis)

namespace hep {

class HEP_CAPABILITY("mutex") Mutex {
 public:
  void lock() HEP_ACQUIRE() { mutex_.lock(); }
  void unlock() HEP_RELEASE() { mutex_.unlock(); }

 private:
  friend class Lock;
  std::mutex mutex_;
};

class HEP_SCOPED_CAPABILITY Lock {
 public:
  explicit Lock(Mutex& mutex) HEP_ACQUIRE(mutex) : lock_(mutex.mutex_) {}
  ~Lock() HEP_RELEASE() {}
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // For a condition variable. It releases the mutex while it waits. Clang does not know the
  // caller's locks inside a predicate, so the caller loops instead.
  std::unique_lock<std::mutex>& native() { return lock_; }

 private:
  std::unique_lock<std::mutex> lock_;
};

class HEP_CAPABILITY("mutex") SharedMutex {
 public:
  void lock() HEP_ACQUIRE() { mutex_.lock(); }
  void unlock() HEP_RELEASE() { mutex_.unlock(); }
  void lock_shared() HEP_ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void unlock_shared() HEP_RELEASE_SHARED() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
};

class HEP_SCOPED_CAPABILITY SharedLock {
 public:
  explicit SharedLock(SharedMutex& mutex) HEP_ACQUIRE_SHARED(mutex) : mutex_(mutex) {
    mutex_.lock_shared();
  }
  ~SharedLock() HEP_RELEASE() { mutex_.unlock_shared(); }
  SharedLock(const SharedLock&) = delete;
  SharedLock& operator=(const SharedLock&) = delete;

 private:
  SharedMutex& mutex_;
};

}  // namespace hep
