// SPDX-License-Identifier: Apache-2.0
#include "base/handles.h"

#include <set>
#include <utility>

#include "base/fork.h"
#include "base/thread_annotations.h"

namespace hep {
namespace {

// Never destroyed: handles may be used at exit.
struct Handles {
  static Handles& instance() {
    static Handles* const handles = new Handles;
    return *handles;
  }

  HeldOverForks mutex;
  std::set<std::pair<HandleKind, const void*>> live HEP_GUARDED_BY(mutex);
};

}  // namespace

LiveHandle::LiveHandle(HandleKind kind, const void* address) : kind_(kind), address_(address) {
  Handles& handles = Handles::instance();
  const Lock lock(handles.mutex);
  handles.live.emplace(kind, address);
}

LiveHandle::~LiveHandle() {
  Handles& handles = Handles::instance();
  const Lock lock(handles.mutex);
  handles.live.erase({kind_, address_});
}

bool is_live_handle(HandleKind kind, const void* address) {
  Handles& handles = Handles::instance();
  const Lock lock(handles.mutex);
  return handles.live.count({kind, address}) != 0;
}

}  // namespace hep
