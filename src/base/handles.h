// SPDX-License-Identifier: Apache-2.0
// Which handles are alive. A pointer to something else, or to what has been destroyed, is recognised
// without being followed.
#pragma once

namespace hep {

enum class HandleKind { kComm, kRouting };

// As long as an object has one of these as a member, its address is a handle.
class LiveHandle {
 public:
  LiveHandle(HandleKind kind, const void* address);
  ~LiveHandle();
  LiveHandle(const LiveHandle&) = delete;
  LiveHandle& operator=(const LiveHandle&) = delete;

 private:
  const HandleKind kind_;
  const void* const address_;
};

bool is_live_handle(HandleKind kind, const void* address);

}  // namespace hep
