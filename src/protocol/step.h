// SPDX-License-Identifier: Apache-2.0
// Which part of an operation a call, and its kernel, does.
#pragma once

#include <cstdint>

namespace hep {

enum class Step : int32_t {
  kWhole,
  kSend,    // what peers need; waits only for peers that are not done with the operation before
  kReceive  // the rest, with the arguments of kSend
};

}  // namespace hep
