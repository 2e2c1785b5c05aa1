// SPDX-License-Identifier: Apache-2.0
// What a report says of where and when it was made.
#pragma once

#include <hybridep.h>

#include <string>

namespace perf {

std::string version_text();  // of the library
std::string cpu_name();
std::string utc_time();

inline const char* backend_name(hepBackend_t backend) {
  return backend == hepBackendCuda ? "cuda" : "host";
}

}  // namespace perf
