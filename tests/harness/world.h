// SPDX-License-Identifier: Apache-2.0
// The ranks of a run: threads of this process, or processes of mpirun with one or more rank threads
// each. Tests and benchmarks are written against this and run unchanged either way.
#pragma once

#include <hybridep.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

namespace harness {

struct WorldOptions {
  int num_ranks = 0;  // all ranks; 0: one a process under mpirun, otherwise one a GPU, or 4
  hepBackend_t backend = hepBackendAuto;
  int domain_size = 0;  // of communicators whose config leaves it open; 0: all ranks
};

class World {
 public:
  // Joins MPI if mpirun started this process, and takes its options out of the command line. If the
  // world cannot be made as asked for, says why on standard error and returns false.
  static bool init(int* argc, char*** argv, const WorldOptions& options);

  // Leaves MPI. A program must not use the world after it.
  static void finalize();

  static bool started_by_mpi();
  static int num_devices();                   // usable CUDA devices that this process sees
  int num_gpus() const { return num_gpus_; }  // of all ranks together; 0 on the host backend
  bool shares_devices() const { return num_gpus_ > 0 && num_ranks() > num_gpus_; }

  int num_ranks() const { return num_processes_ * num_local_ranks_; }
  int num_processes() const { return num_processes_; }
  int first_rank() const { return process_ * num_local_ranks_; }
  int num_local_ranks() const { return num_local_ranks_; }
  bool is_root() const { return process_ == 0; }  // this process hosts rank 0
  hepBackend_t backend() const { return backend_; }
  int domain_size() const { return domain_size_ != 0 ? domain_size_ : num_ranks(); }
  bool has_several_domains() const { return domain_size() < num_ranks(); }
  // Returns the number of a local rank's GPU in this process; -1 on the host backend. Ranks may
  // share a GPU.
  int device(int rank) const;

  // Runs body(rank) on one thread for each local rank, with the rank's device current, and joins
  // them. Every process calls it; it returns when the bodies of all processes have ended. Rethrows
  // the first exception that left a body of this process.
  void run(const std::function<void(int rank)>& body);

  // Collective over all ranks, inside run(). Returns false if a rank's body has ended or the ranks
  // disagree on `bytes`. Then `receive` [num_ranks][bytes] is untouched. It does not hang for such
  // a reason.
  bool all_gather(int rank, const void* send, void* receive, size_t bytes);
  bool barrier(int rank) { return all_gather(rank, nullptr, nullptr, 0); }

  // Collective over processes, outside run(). Returns the highest of their values.
  int max_over_processes(int value) const;

  // Creates this rank's communicator. An auto backend and a domain size of 0 in `config` become the
  // world's. In one process it is created by unique id, under mpirun over all_gather().
  hepResult_t create_comm(int rank, const hepConfig_t& config, hepComm_t* comm);

 private:
  void serve_collectives();
  bool exchange(size_t bytes, bool agreed, bool* all_departed);
  int count_gpus() const;

  int num_processes_ = 1, process_ = 0, num_local_ranks_ = 1, num_devices_ = 0;
  int num_gpus_ = 0;
  hepBackend_t backend_ = hepBackendHost;
  int domain_size_ = 0;

  // There is one collective at a time. Local ranks leave their parts, and the main thread exchanges
  // them.
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0, departed_ = 0;
  uint64_t round_ = 0;
  size_t bytes_ = 0;
  bool agreed_ = true, succeeded_ = false;
  std::vector<char> sent_, received_;
};

World& world();

}  // namespace harness
