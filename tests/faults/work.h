// SPDX-License-Identifier: Apache-2.0
// What the ranks of a crew do on a communicator: operations in which every rank needs every other,
// and a round whose results are checked against the oracle.
#pragma once

#include <hybridep.h>

#include <memory>
#include <string>

#include "harness/memory.h"

namespace faults {

constexpr int kTokens = 40;
constexpr int kHidden = 64;

// In milliseconds: of the creation of a communicator, and of its operations.
struct Timeouts {
  int init, operation;
};

hepConfig_t make_config(hepBackend_t backend, int num_ranks, Timeouts timeouts);

// Usable GPUs. Asked in a process of its own: what has used CUDA cannot fork any more.
int count_devices();

// On the cuda backend, makes the GPU current that is this rank's alone.
void take_gpu(hepBackend_t backend, int rank);

// A communicator with one routing, buffers and a stream.
class Work {
 public:
  Work(hepBackend_t backend, int rank, int num_ranks);
  ~Work();
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  // The communicator comes last, when all memory has been taken.
  hepResult_t start(const hepUniqueId_t& id, Timeouts timeouts);
  hepResult_t end();

  hepComm_t comm() const { return comm_; }
  hepResult_t issue(hepOperation_t operation);
  void synchronize() { stream_.synchronize(); }

  // An update, a dispatch and a combine as one graph; cuda only.
  void capture();
  void replay() { graph_->launch(stream_); }

  // A round with all ranks; what is wrong with its results, or empty.
  std::string check_round();

 private:
  hepBackend_t backend_;
  int rank_, num_ranks_;
  harness::Stream stream_;
  harness::Buffer indices_, x_, rows_, out_;
  std::unique_ptr<harness::Graph> graph_;
  hepComm_t comm_ = nullptr;
  hepRouting_t routing_ = nullptr;
};

}  // namespace faults
