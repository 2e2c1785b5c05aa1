// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <cstring>
#include <stdexcept>

#include "gpu.h"

namespace perf {

RowTable::RowTable(const std::vector<uint16_t>& values, harness::Stream& stream)
    : values_(values), stream_(stream) {
  if (stream.backend() != hepBackendCuda) return;
  gpu_values_ = harness::Buffer(hepBackendCuda, values.size() * sizeof(uint16_t));
  gpu_counter_ = harness::Buffer(hepBackendCuda, sizeof(unsigned long long));
  gpu_values_.upload(values.data(), gpu_values_.bytes());
  prove_comparison();
}

// Everything rests on it, so it must find what is wrong before it is believed.
void RowTable::prove_comparison() {
  constexpr int kHidden = 1000;
  const std::vector<int32_t> starts = {0, 12345, kZeroRow}, others = {0, 12346, 1};
  const harness::Buffer rows(hepBackendCuda, starts.size() * kHidden * sizeof(uint16_t));
  fill(rows.as<uint16_t>(), starts, kHidden);
  const int64_t same = count_wrong(rows.as<uint16_t>(), starts, kHidden);
  const int64_t different = count_wrong(rows.as<uint16_t>(), others, kHidden);
  // By chance a few neighbours are equal.
  if (same != 0 || different < kHidden || different > 2 * kHidden) {
    throw std::runtime_error("the comparison of rows on the GPU does not work");
  }
}

void RowTable::fill(uint16_t* rows, const std::vector<int32_t>& starts, int hidden) {
  if (starts.empty()) return;
  if (stream_.backend() == hepBackendCuda) {
    harness::Buffer gpu_starts(hepBackendCuda, starts.size() * sizeof(int32_t));
    gpu_starts.upload(starts.data(), gpu_starts.bytes());
    fill_rows(
        {gpu_values_.as<uint16_t>(), gpu_starts.as<int32_t>(), int64_t(starts.size()), hidden},
        rows, stream_.get());
    return;
  }
  for (const int32_t start : starts) {
    if (start == kZeroRow) {
      std::memset(rows, 0, hidden * sizeof(uint16_t));
    } else {
      std::memcpy(rows, &values_[start], hidden * sizeof(uint16_t));
    }
    rows += hidden;
  }
}

int64_t RowTable::count_wrong(const uint16_t* rows, const std::vector<int32_t>& starts,
                              int hidden) {
  if (starts.empty()) return 0;
  if (stream_.backend() == hepBackendCuda) {
    harness::Buffer gpu_starts(hepBackendCuda, starts.size() * sizeof(int32_t));
    gpu_starts.upload(starts.data(), gpu_starts.bytes());
    return count_wrong_rows(
        {gpu_values_.as<uint16_t>(), gpu_starts.as<int32_t>(), int64_t(starts.size()), hidden},
        rows, gpu_counter_.as<unsigned long long>(), stream_.get());
  }
  int64_t wrong = 0;
  for (const int32_t start : starts) {
    for (int h = 0; h < hidden; ++h) {
      wrong += rows[h] != (start == kZeroRow ? 0 : values_[start + h]);
    }
    rows += hidden;
  }
  return wrong;
}

}  // namespace perf
