// SPDX-License-Identifier: Apache-2.0
// Creates communicators, in steps that either all ranks take or none.
#pragma once

#include <hybridep.h>

#include <memory>

#include "base/status.h"
#include "comm/comm.h"

namespace hep {

// Creates one rank's communicator. An error on any rank becomes an error on all.
Status create_comm(const hepUniqueId_t& id, int rank, int num_ranks, const hepConfig_t* config,
                   std::unique_ptr<hepComm>* out);

// Creates the communicators of all ranks in this process, each bound to its device.
Status create_all_comms(int num_ranks, const int* devices, const hepConfig_t* config,
                        hepComm_t* comms);

// Creates one rank's communicator after the ranks have agreed on a unique id over the caller's
// all-gather. `own` is the error of this rank so far. The peers are on their way into `all_gather`,
// so it is told to them before it is returned.
Status create_comm_over_callback(hepAllGather_t all_gather, void* context, int rank, int num_ranks,
                                 Status own, const hepConfig_t* config,
                                 std::unique_ptr<hepComm>* out);

// Does the same over an NCCL communicator, which tells the rank and the device.
Status create_comm_over_nccl(ncclComm* nccl, const hepConfig_t* config,
                             std::unique_ptr<hepComm>* out);

}  // namespace hep
