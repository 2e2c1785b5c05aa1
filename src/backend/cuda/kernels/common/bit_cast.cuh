// SPDX-License-Identifier: Apache-2.0
// Values of one type as another's, bit for bit.
#pragma once

namespace hep {

template <typename To, typename From>
__device__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace hep
