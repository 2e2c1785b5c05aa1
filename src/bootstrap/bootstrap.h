// SPDX-License-Identifier: Apache-2.0
// The bootstrap lets the ranks of a future communicator find each other and exchange small
// messages. All-gather is the only operation; with 0 bytes it is a barrier. One rank's process
// holds a hub (hub.h) that all ranks connect to over TCP. The other two ways to start only carry
// the hub's unique id.
#pragma once

#include <hybridep.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"

namespace hep {

// Connects one rank to all others. One thread at a time may use it.
class Bootstrap {
 public:
  // A rank may give at most this many bytes to an all-gather.
  static constexpr size_t kMaxBytes = 1 << 20;

  // Collective: connects to the hub that `id` names, proves the id's secret and returns when all
  // `num_ranks` ranks have done so. Errors name this rank and, where others are the reason, them:
  // hepErrorInvalidArgument  the id is damaged, or rank and num_ranks are out of range
  // hepErrorMismatch         a rank came twice, was told another number of ranks, or has another
  //                          version of the library
  // hepErrorTimeout          the deadline passed; the sentence names the ranks that did not come
  // hepErrorPeerLost         a rank, or the hub, has gone
  static Status join(const hepUniqueId_t& id, int rank, int num_ranks, Deadline deadline,
                     std::unique_ptr<Bootstrap>* out);

  // Collective: copies `bytes` bytes at `send` of every rank to `receive` [num_ranks][bytes] of
  // every rank. 0 bytes make a barrier. `phase` has at most 31 characters and says in errors what
  // was going on. Ranks in different phases, or with different sizes, get hepErrorMismatch. When
  // one rank fails or its deadline passes, all ranks get the error, also those that come later.
  // Every further call returns it, too.
  Status all_gather(const void* send, void* receive, size_t bytes, const char* phase,
                    Deadline deadline);

  // Tells all ranks that this one has failed, in a sentence that names it. They get the error from
  // the all-gather that they are in, or else from the next, and interrupt() tells them at once.
  void fail(const Status& failure);

  // Has something to read as soon as another rank is gone or has failed. Of use between two
  // all-gathers alone, where the hub says nothing else.
  int interrupt() const { return socket_.get(); }

  // Takes a connection to a hub that has let this rank in.
  Bootstrap(Descriptor socket, int rank, int num_ranks);

  // Leaves and never waits. Ranks that wait for this one, now or later, get hepErrorPeerLost.
  ~Bootstrap();

 private:
  Status exchange(const void* send, void* receive, size_t bytes, const char* phase,
                  Deadline deadline);
  Status read_error(size_t length, const char* phase, Deadline deadline);

  Descriptor socket_;
  const int rank_, num_ranks_;
  uint32_t sequence_ = 0;
  Status failure_;  // the first one
};

// Says who can reach a hub: ranks on the network, or those on this machine.
enum class Reach { kNetwork, kMachine };

// Opens a hub in this process and writes its id, which serves one communicator. The hub ends by
// itself when all its ranks have left, or when nobody came for HEP_RENDEZVOUS_TIMEOUT_MS.
Status create_unique_id(hepUniqueId_t* id, Reach reach = Reach::kNetwork);

// Ends the hub of an id that this rank will not use. The rank takes its seat and leaves it at once,
// so that other ranks which have the id learn it. Never waits for them.
void decline(const hepUniqueId_t& id, int rank, int num_ranks);

// Makes an id known to all ranks over one call of a caller's all-gather. Rank 0 opens the hub.
// Collective: every rank that knows the number of ranks calls `all_gather`, even after an error on
// this rank or on another one. `own` is the error of this rank so far, for example a `rank` out of
// range. An error of any rank becomes an error of all.
Status unique_id_over_callback(hepAllGather_t all_gather, void* context, int rank, int num_ranks,
                               const Status& own, hepUniqueId_t* id);

// Does the same over an NCCL communicator, which also tells rank, num_ranks and device.
// hepErrorUnsupported where the library was built without CUDA or NCCL cannot be opened.
Status unique_id_over_nccl(ncclComm* nccl, int timeout_ms, hepUniqueId_t* id, int* rank,
                           int* num_ranks, int* device);

}  // namespace hep
