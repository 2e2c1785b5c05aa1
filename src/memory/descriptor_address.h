// SPDX-License-Identifier: Apache-2.0
// The address at which a process offers a file descriptor to the other processes of its host.
#pragma once

#include <cstdint>

#include "base/descriptor.h"
#include "base/status.h"

namespace hep {

// Tells others how to reach a channel, and what it offers. It is all-gathered as plain bytes. Zeros
// mean that there is no channel.
struct DescriptorAddress {
  uint64_t token;                    // a connection to this channel must know it
  uint64_t process_namespace;        // the namespace of process_id
  uint64_t file_device, file_inode;  // of the offered descriptor
  int32_t process_id;
  int32_t descriptor;  // its number in that process
  uint32_t user_id;    // the effective one
  uint32_t reserved;
  char socket_name[48];  // abstract, without the leading zero
};

// Describes an open descriptor of this process and listens where others will ask for it.
Status offer_descriptor(int descriptor, DescriptorAddress* address, Descriptor* listener);

// Connects to the socket of an address without blocking. If the result is invalid, errno says why.
Descriptor connect_to_offer(const DescriptorAddress& address);

// Returns whether a descriptor stands for the file that an address offers.
bool is_file_of(int descriptor, const DescriptorAddress& address);

// Copies an offered descriptor out of its process. This needs the right to trace that process.
// hepErrorPeerLost if the process is gone.
Status take_descriptor(const DescriptorAddress& address, Descriptor* out);

}  // namespace hep
