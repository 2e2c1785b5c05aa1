// SPDX-License-Identifier: Apache-2.0
// Tables of numbers of which every row of every job is a stretch, begun elsewhere (row_start()).
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "options.h"

namespace perf {

struct ValueTable {
  int element_bytes;
  std::vector<char> data;

  const char* at(int32_t start) const { return &data[int64_t{start} * element_bytes]; }
};

class Values {
 public:
  Values(uint64_t seed, const std::set<hepDataType_t>& types);

  const ValueTable& of(hepDataType_t type) const { return tables_.at(type); }
  const std::map<hepDataType_t, ValueTable>& all() const { return tables_; }

 private:
  std::map<hepDataType_t, ValueTable> tables_;
};

// Of all inputs, rows and scales that these jobs have.
std::set<hepDataType_t> types_of(const std::vector<Shape>& shapes);

}  // namespace perf
