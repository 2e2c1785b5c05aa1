// SPDX-License-Identifier: Apache-2.0
// NCCL, for the baselines: opened at run time, with the few functions that are needed declared here as
// its 2.x releases have them. Failures are thrown as std::runtime_error.
#pragma once

#include <hybridep.h>

#include <cstddef>
#include <string>

#include "harness/world.h"

namespace perf {

class Nccl {
 public:
  // The process's one, opened at the first call.
  static const Nccl& instance();

  // Empty if it was opened, otherwise why not.
  const std::string& refusal() const { return refusal_; }
  std::string version() const;

 private:
  friend class NcclComm;
  struct UniqueId {
    char bytes[128];
  };
  Nccl();
  void check(int result, const char* call) const;

  std::string refusal_;
  const char* (*get_error_string_)(int result) = nullptr;
  int (*get_version_)(int* version) = nullptr;
  int (*get_unique_id_)(UniqueId* id) = nullptr;
  int (*comm_init_rank_)(ncclComm** comm, int ranks, UniqueId id, int rank) = nullptr;
  int (*comm_abort_)(ncclComm* comm) = nullptr;
  int (*group_start_)() = nullptr;
  int (*group_end_)() = nullptr;
  int (*send_)(const void* from, size_t count, int type, int peer, ncclComm* comm,
               hepStream_t stream) = nullptr;
  int (*receive_)(void* to, size_t count, int type, int peer, ncclComm* comm,
                  hepStream_t stream) = nullptr;
  int (*all_gather_)(const void* from, void* to, size_t count, int type, ncclComm* comm,
                     hepStream_t stream) = nullptr;
};

class NcclComm {
 public:
  // Collective. Only if Nccl::instance().refusal() is empty in all processes.
  NcclComm(harness::World& world, int rank);
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  // Enqueue; in bytes. What is sent and received between begin_group() and end_group() is one
  // operation.
  void begin_group() const;
  void end_group() const;
  void send(const void* from, size_t bytes, int peer, hepStream_t stream) const;
  void receive(void* to, size_t bytes, int peer, hepStream_t stream) const;
  void all_gather(const void* from, void* to, size_t bytes, hepStream_t stream) const;

 private:
  const Nccl& nccl_;
  ncclComm* comm_ = nullptr;
};

}  // namespace perf
