// SPDX-License-Identifier: Apache-2.0
#include "base/handles.h"

#include <atomic>
#include <map>
#include <utility>

#include "base/fork.h"
#include "base/thread_annotations.h"

namespace hep {
namespace {

// This is never destroyed, because handles may be used at exit.
struct Handles {
  static Handles& instance() {
    static Handles* const handles = new Handles;
    return *handles;
  }

  HeldOverForks mutex;
  std::map<std::pair<HandleKind, const void*>, void*> live HEP_GUARDED_BY(mutex);
};

// The address is not canonical on x86-64, and is far from every address on other machines.
constexpr uint64_t kFirstHandle = 0x4845500000000000;
constexpr uint64_t kHandleStep = 16;  // callers may check the alignment

void* next_handle() {
  static std::atomic<uint64_t> next{kFirstHandle};
  return reinterpret_cast<void*>(next.fetch_add(kHandleStep));
}

}  // namespace

LiveHandle::LiveHandle(HandleKind kind, void* object) : kind_(kind), value_(next_handle()) {
  Handles& handles = Handles::instance();
  const Lock lock(handles.mutex);
  handles.live.emplace(std::make_pair(kind, value_), object);
}

LiveHandle::~LiveHandle() {
  Handles& handles = Handles::instance();
  const Lock lock(handles.mutex);
  handles.live.erase({kind_, value_});
}

void* find_object(HandleKind kind, const void* handle) {
  Handles& handles = Handles::instance();
  const Lock lock(handles.mutex);
  const auto found = handles.live.find({kind, handle});
  return found == handles.live.end() ? nullptr : found->second;
}

}  // namespace hep
