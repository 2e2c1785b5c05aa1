// SPDX-License-Identifier: Apache-2.0
// Calls a routing update in one line.
#pragma once

#include <hybridep.h>

#include <cstdint>

namespace harness {

inline hepUpdate_t make_update(const void* indices, int64_t num_tokens, int top_k,
                               hepIndexType_t index_type) {
  hepUpdate_t update = HEP_UPDATE_INITIALIZER;
  update.indices = indices;
  update.num_tokens = num_tokens;
  update.top_k = top_k;
  update.index_type = index_type;
  return update;
}

inline hepResult_t update_routing(hepRouting_t routing, const void* indices, int64_t num_tokens,
                                  int top_k, hepIndexType_t index_type, hepStream_t stream) {
  const hepUpdate_t update = make_update(indices, num_tokens, top_k, index_type);
  return hepRoutingUpdate(routing, &update, stream);
}

}  // namespace harness
