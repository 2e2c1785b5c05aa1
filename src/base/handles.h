// SPDX-License-Identifier: Apache-2.0
// A handle stands for an object at the caller's. It is a number of the type of a pointer. No number
// is used twice, so the handle of a destroyed object is never taken for a later object at the same
// address. No number is an address, so nobody can dereference it.
#pragma once

#include <cstdint>

namespace hep {

enum class HandleKind { kComm, kRouting };

// An object has a handle as long as it has one of these as a member.
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

// Returns the object of a handle, or NULL if the object is gone or there never was one.
void* find_object(HandleKind kind, const void* handle);

}  // namespace hep
