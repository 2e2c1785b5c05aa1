// SPDX-License-Identifier: Apache-2.0
// The element types of rows.
#pragma once

#include <hybridep.h>

#include <cstdint>

#include "base/status.h"

namespace hep {

// NULL for what is no type; hepTypeDefault is none.
const char* type_name(int32_t type);

// Bytes of one element; 0 for what is no type.
int element_bytes(int32_t type);

// What combine can add: BF16, FP16 and FP32.
bool is_summable(int32_t type);

// What partial sums may be: BF16 and FP32.
bool is_partial_type(int32_t type);

// Refuses what is no type. `name` is the field's, for the error.
Status check_type(const char* name, int32_t type);
Status check_summable(const char* name, int32_t type);
Status check_partial_type(const char* name, int32_t type);

// Refuses a type whose rows of `hidden` elements cannot be moved in pieces of 16 bytes.
Status check_row_granularity(const char* name, int64_t hidden, int32_t type);

}  // namespace hep
