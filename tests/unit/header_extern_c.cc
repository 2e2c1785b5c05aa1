// SPDX-License-Identifier: Apache-2.0
// A C++ program may include the header as it includes C headers that have no guard for C++.
extern "C" {
#include <hybridep.h>
}

int header_is_self_contained(hepConfig_t* config) {
  *config = HEP_CONFIG_INITIALIZER;
  return HEP_VERSION;
}
