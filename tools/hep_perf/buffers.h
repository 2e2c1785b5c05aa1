// SPDX-License-Identifier: Apache-2.0
// Inputs and outputs of the measured calls.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "harness/memory.h"
#include "job.h"
#include "require.h"
#include "session.h"

namespace perf {

inline harness::Buffer poisoned(hepBackend_t backend, int64_t bytes) {
  constexpr unsigned char kPoison = 0xa5;
  harness::Buffer buffer(backend, bytes);
  buffer.fill(kPoison);
  return buffer;
}

template <typename T>
harness::Buffer uploaded(hepBackend_t backend, const std::vector<T>& values) {
  harness::Buffer buffer(backend, values.size() * sizeof(T));
  buffer.upload(values.data(), buffer.bytes());
  return buffer;
}

// Rows in memory of the library's heap or in other memory.
class Rows {
 public:
  Rows(const Job& job, hepComm_t comm, Memory memory, int64_t bytes) : comm_(comm) {
    if (bytes == 0) return;
    if (memory == Memory::kHeap) {
      require(hepMemAlloc(comm, bytes, &heap_), "hepMemAlloc");
    } else {
      buffer_ = harness::Buffer(job.backend, bytes);
    }
  }
  ~Rows() { hepMemFree(comm_, heap_); }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  // NULL if there are none.
  char* data() const { return heap_ != nullptr ? static_cast<char*>(heap_) : buffer_.as<char>(); }

 private:
  hepComm_t comm_;
  void* heap_ = nullptr;
  harness::Buffer buffer_;
};

// Of a dispatch: what goes in and what comes out.
struct Weights {
  Weights(const Job& job, int rank, hepLayout_t layout, int64_t rows) {
    if (!job.options.weights) return;
    const bool flat = layout == hepLayoutFlat;
    const int64_t columns = flat ? job.shape.top_k : 1;
    in = uploaded(job.backend, job.weights[rank]);
    of_rows = poisoned(job.backend, rows * columns * sizeof(float));
    if (flat) experts = poisoned(job.backend, rows * columns * sizeof(int32_t));
  }
  // Asks a dispatch for them.
  void fill(hepDispatchArgs_t* args) const {
    args->weights = in.as<float>();
    args->row_weights = of_rows.as<float>();
    args->row_experts = experts.as<int32_t>();
  }
  harness::Buffer in, of_rows, experts;
};

// Scales of a dispatch: those of its tokens, unless they are made on the way, and those that arrive.
struct Scaling {
  Scaling(const Job& job, int rank, int64_t tokens, int64_t rows, Session& session) : job(job) {
    const Format& format = job.format();
    if (!format.has_scales()) return;
    of_rows = poisoned(job.backend, rows * job.scale_bytes());
    if (format.is_quantized()) return;
    in = harness::Buffer(job.backend, tokens * job.scale_bytes());
    session.rows(hepTypeFloat32)
        .fill(in.data(), row_starts(Matrix::kScales, rank, tokens),
              format.scale_columns(job.shape.hidden));
  }
  // Gives a dispatch those from these rows on.
  void fill(int64_t first_token, int64_t first_row, hepDispatchArgs_t* args) const {
    const int64_t bytes = job.scale_bytes();
    args->scales = in.data() == nullptr ? nullptr : in.as<char>() + first_token * bytes;
    args->row_scales = of_rows.data() == nullptr ? nullptr : of_rows.as<char>() + first_row * bytes;
  }
  const Job& job;
  harness::Buffer in, of_rows;
};

}  // namespace perf
