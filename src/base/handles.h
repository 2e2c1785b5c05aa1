// SPDX-License-Identifier: Apache-2.0
// What the caller has of an object: a number in the guise of a pointer. No number comes again, so
// that what has been destroyed is never taken for what was made later at the same address. No number
// is an address, so that nobody follows it.
#pragma once

#include <cstdint>

namespace hep {

enum class HandleKind { kComm, kRouting };

// As long as an object has one of these as a member, it has a handle.
class LiveHandle {
 public:
  LiveHandle(HandleKind kind, void* object);
  ~LiveHandle();
  LiveHandle(const LiveHandle&) = delete;
  LiveHandle& operator=(const LiveHandle&) = delete;

  void* value() const { return value_; }

 private:
  const HandleKind kind_;
  void* const value_;
};

// Returns the object of a handle, or NULL if it has none, or not any more.
void* find_object(HandleKind kind, const void* handle);

}  // namespace hep
