// SPDX-License-Identifier: Apache-2.0
#include "values.h"

#include <cstring>

#include "oracle/formats.h"
#include "parallel.h"
#include "random.h"
#include "workload.h"

namespace perf {
namespace {

template <typename T, typename Make>
void fill_table(ValueTable* table, const Make& make) {
  parallel_for(kNumValues, 1, [&](int64_t i) {
    const T value = make(i);
    std::memcpy(&table->data[i * sizeof(T)], &value, sizeof(T));
  });
}

ValueTable make_table(hepDataType_t type, uint64_t seed) {
  ValueTable table;
  const auto number = [=](int64_t i) { return static_cast<float>(2 * unit(hash(seed, i)) - 1); };
  const auto allocate = [&](int element_bytes) {
    table.element_bytes = element_bytes;
    table.data.resize(kNumValues * element_bytes);
  };
  switch (type) {
    case hepTypeFloat32:
      allocate(4);
      fill_table<float>(&table, number);
      break;
    case hepTypeFloat16:
      allocate(2);
      fill_table<uint16_t>(&table, [&](int64_t i) {
        return static_cast<uint16_t>(formats::encode(formats::kFloat16, number(i)));
      });
      break;
    case hepTypeBfloat16:
      allocate(2);
      fill_table<uint16_t>(&table, [&](int64_t i) {
        const float value = number(i);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return static_cast<uint16_t>(bits >> 16);
      });
      break;
    default:  // forwarded bit for bit, so any will do
      allocate(1);
      fill_table<uint8_t>(&table, [&](int64_t i) { return static_cast<uint8_t>(hash(seed, i)); });
  }
  return table;
}

}  // namespace

Values::Values(uint64_t seed, const std::set<hepDataType_t>& types) {
  for (const hepDataType_t type : types) tables_.emplace(type, make_table(type, seed));
}

std::set<hepDataType_t> types_of(const std::vector<Shape>& shapes) {
  std::set<hepDataType_t> types;
  for (const Shape& shape : shapes) {
    types.insert(shape.format.type);
    types.insert(shape.format.x_type());
    if (shape.format.has_scales()) types.insert(hepTypeFloat32);
  }
  return types;
}

}  // namespace perf
