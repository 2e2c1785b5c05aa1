// SPDX-License-Identifier: Apache-2.0
// The memory of one rank: that of the whole run, and the inputs and outputs of the calls.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gpu.h"
#include "harness/memory.h"
#include "job.h"
#include "rows.h"

namespace bench {

// Turns a failed call of the library into an exception with its sentence.
inline void require(hepResult_t result, const char* call) {
  if (result == hepSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + hepGetErrorString(result) + ": " +
                           hepGetLastError());
}

// A rank keeps this from the first job of a run to the last.
struct Session {
  // Runs on the rank's thread.
  Session(hepBackend_t backend, const Values& values) : stream(backend) {
    for (const auto& [type, table] : values.all()) tables.try_emplace(type, table, stream);
    if (backend == hepBackendCuda) {
      pinned = std::make_unique<PinnedMemory>(kStagingBytes);
    } else {
      plain.resize(kStagingBytes);
    }
  }

  // Returns host memory for results on their way to a comparison.
  static constexpr int64_t kStagingBytes = int64_t{16} << 20;
  char* staging() { return pinned ? pinned->data() : plain.data(); }

  RowTable& rows(hepDataType_t type) { return tables.at(type); }

  harness::Stream stream;
  std::map<hepDataType_t, RowTable> tables;
  std::unique_ptr<PinnedMemory> pinned;  // on cuda
  std::vector<char> plain;               // on host
};

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

  // Returns NULL if there are none.
  char* data() const { return heap_ != nullptr ? static_cast<char*>(heap_) : buffer_.as<char>(); }

 private:
  hepComm_t comm_;
  void* heap_ = nullptr;
  harness::Buffer buffer_;
};

// The weights of a dispatch: those that go in, and those and the experts that come out.
struct Weights {
  Weights(const Job& job, int rank, hepLayout_t layout, int64_t rows) {
    if (!job.options.weights) return;
    const bool flat = layout == hepLayoutFlat;
    const int64_t columns = flat ? job.shape.top_k : 1;
    in = uploaded(job.backend, job.weights[rank]);
    of_rows = poisoned(job.backend, rows * columns * sizeof(float));
    if (flat) experts = poisoned(job.backend, rows * columns * sizeof(int32_t));
  }
  // Gives a dispatch the weights and asks it for the outputs.
  void fill(hepDispatchArgs_t* args) const {
    args->weights = in.as<float>();
    args->row_weights = of_rows.as<float>();
    args->row_experts = experts.as<int32_t>();
  }
  harness::Buffer in, of_rows, experts;
};

// The scales of a dispatch: those of its tokens, unless the dispatch makes them, and those that
// arrive.
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
  // Gives a dispatch the scales from these rows on.
  void fill(int64_t first_token, int64_t first_row, hepDispatchArgs_t* args) const {
    const int64_t bytes = job.scale_bytes();
    args->scales = in.data() == nullptr ? nullptr : in.as<char>() + first_token * bytes;
    args->row_scales = of_rows.data() == nullptr ? nullptr : of_rows.as<char>() + first_row * bytes;
  }
  const Job& job;
  harness::Buffer in, of_rows;
};

}  // namespace bench
