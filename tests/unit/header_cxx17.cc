// SPDX-License-Identifier: Apache-2.0
// The header needs nothing before it in this language standard.
#include <hybridep.h>

int header_is_self_contained(hepConfig_t* config) {
  *config = HEP_CONFIG_INITIALIZER;
  return HEP_VERSION;
}
