// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <cstring>
#include <stdexcept>

namespace bench {
namespace {

harness::Buffer on_device(const std::vector<int32_t>& starts) {
  harness::Buffer buffer(hepBackendCuda, starts.size() * sizeof(int32_t));
  buffer.upload(starts.data(), buffer.bytes());
  return buffer;
}

}  // namespace

RowTable::RowTable(const ValueTable& values, harness::Stream& stream)
    : values_(values), stream_(stream) {
  if (stream.backend() == hepBackendCuda) {
    gpu_values_ = harness::Buffer(hepBackendCuda, values.data.size());
    gpu_counter_ = harness::Buffer(hepBackendCuda, sizeof(unsigned long long));
    gpu_values_.upload(values.data.data(), gpu_values_.bytes());
  }
  prove_comparison();
}

// All checks rest on this one, so it first has to find a fault that was made on purpose.
void RowTable::prove_comparison() {
  constexpr int kColumns = 1000;
  const std::vector<int32_t> starts = {0, 12345, kZeroRow}, others = {0, 12346, 1};
  const harness::Buffer rows(stream_.backend(), starts.size() * kColumns * values_.element_bytes);
  fill(rows.data(), starts, kColumns);
  const int64_t same = count_wrong(rows.data(), starts, kColumns);
  const int64_t different = count_wrong(rows.data(), others, kColumns);
  // A few neighbours are equal by chance.
  if (same != 0 || different < kColumns || different > 2 * kColumns) {
    throw std::runtime_error("the comparison of rows does not work");
  }
}

GpuRows RowTable::on_gpu(const harness::Buffer& starts, int columns) const {
  const int64_t count = starts.bytes() / sizeof(int32_t);
  return {gpu_values_.data(), starts.as<int32_t>(), count, columns, values_.element_bytes};
}

void RowTable::fill(void* rows, const std::vector<int32_t>& starts, int columns) {
  if (starts.empty()) return;
  if (stream_.backend() == hepBackendCuda) {
    const harness::Buffer gpu_starts = on_device(starts);
    fill_rows(on_gpu(gpu_starts, columns), rows, stream_.get());
    return;
  }
  const int64_t row_bytes = int64_t{columns} * values_.element_bytes;
  char* row = static_cast<char*>(rows);
  for (const int32_t start : starts) {
    if (start == kZeroRow) {
      std::memset(row, 0, row_bytes);
    } else if (start != kAnyRow) {
      std::memcpy(row, values_.at(start), row_bytes);
    }
    row += row_bytes;
  }
}

int64_t RowTable::count_wrong(const void* rows, const std::vector<int32_t>& starts, int columns) {
  if (starts.empty()) return 0;
  if (stream_.backend() == hepBackendCuda) {
    const harness::Buffer gpu_starts = on_device(starts);
    return count_wrong_rows(on_gpu(gpu_starts, columns), rows,
                            gpu_counter_.as<unsigned long long>(), stream_.get());
  }
  const int64_t row_bytes = int64_t{columns} * values_.element_bytes;
  const std::vector<char> zeros(row_bytes, 0);
  const char* row = static_cast<const char*>(rows);
  int64_t wrong = 0;
  for (const int32_t start : starts) {
    if (start != kAnyRow)
      wrong += count_different(row, start == kZeroRow ? zeros.data() : values_.at(start), columns,
                               values_.element_bytes);
    row += row_bytes;
  }
  return wrong;
}

int64_t count_different(const void* a, const void* b, int64_t count, int element_bytes) {
  if (count == 0 || std::memcmp(a, b, count * element_bytes) == 0) return 0;
  const char* const left = static_cast<const char*>(a);
  const char* const right = static_cast<const char*>(b);
  int64_t different = 0;
  for (int64_t i = 0; i < count * element_bytes; i += element_bytes) {
    different += std::memcmp(left + i, right + i, element_bytes) != 0;
  }
  return different;
}

}  // namespace bench
