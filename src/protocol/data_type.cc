// SPDX-License-Identifier: Apache-2.0
#include "protocol/data_type.h"

#include <cinttypes>

#include "protocol/shape.h"

namespace hep {
namespace {

struct DataType {
  const char* name;
  int bytes;
  bool summable, partial;
};

const DataType* find(int32_t type) {
  static constexpr DataType kTypes[] = {
      {"hepTypeBfloat16", 2, true, true},     {"hepTypeFloat16", 2, true, false},
      {"hepTypeFloat32", 4, true, true},      {"hepTypeFloat8E4M3", 1, false, false},
      {"hepTypeFloat8E5M2", 1, false, false}, {"hepTypeBytes", 1, false, false},
  };
  return type >= hepTypeBfloat16 && type <= hepTypeBytes ? &kTypes[type - hepTypeBfloat16]
                                                         : nullptr;
}

}  // namespace

const char* type_name(int32_t type) { return find(type) ? find(type)->name : nullptr; }

int element_bytes(int32_t type) { return find(type) ? find(type)->bytes : 0; }

bool is_summable(int32_t type) { return find(type) && find(type)->summable; }

bool is_partial_type(int32_t type) { return find(type) && find(type)->partial; }

Status check_type(const char* name, int32_t type) {
  if (find(type)) return Status();
  return error(hepErrorInvalidArgument, "%s is %d, which is no hepDataType_t", name, type);
}

Status check_summable(const char* name, int32_t type) {
  HEP_TRY(check_type(name, type));
  if (is_summable(type)) return Status();
  return error(hepErrorInvalidArgument,
               "%s is %d (%s), but combine adds hepTypeBfloat16, hepTypeFloat16 or hepTypeFloat32",
               name, type, type_name(type));
}

Status check_partial_type(const char* name, int32_t type) {
  HEP_TRY(check_type(name, type));
  if (is_partial_type(type)) return Status();
  return error(hepErrorInvalidArgument,
               "%s is %d (%s), but partial sums are hepTypeBfloat16 or hepTypeFloat32", name, type,
               type_name(type));
}

Status check_row_granularity(const char* name, int64_t hidden, int32_t type) {
  const int64_t bytes = hidden * element_bytes(type);
  if (bytes % kRowGranularity == 0) return Status();
  return error(hepErrorInvalidArgument,
               "%s is %d (%s), which makes rows of %" PRId64 " bytes (hidden is %" PRId64
               "), but a row must be a multiple of %" PRId64 " bytes",
               name, type, type_name(type), bytes, hidden, kRowGranularity);
}

}  // namespace hep
