// SPDX-License-Identifier: Apache-2.0
// Passes file descriptors between the processes of one host: every process sends its own to all
// others over Unix sockets with names that only the kernel holds, and that vanish with their sockets.
// Where sockets do not reach (another network namespace), the descriptor is taken out of the other
// process by its number.
//
// Every process on the machine can find such a socket and connect. What comes from it counts only if
// the kernel confirms the sender's user and process, the message has the receiver's token, and the
// descriptor is the file that the sender announced; all of that is exchanged over the bootstrap.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"

namespace hep {

// How others reach a channel, and what it offers. Plain bytes; zero means: no channel.
struct DescriptorAddress {
  uint64_t token;                    // what a connection to this channel must know
  uint64_t process_namespace;        // in which process_id has its meaning
  uint64_t file_device, file_inode;  // of the offered descriptor
  int32_t process_id;
  int32_t descriptor;    // its number in that process
  char socket_name[48];  // abstract, without the leading zero
};

class DescriptorChannel {
 public:
  // What arrives: lent for the duration of the call.
  using Receiver = std::function<void(int rank, int descriptor)>;

  // Listens from now on. `descriptor` is what will be offered; it stays the caller's and open.
  static Status open(int descriptor, std::unique_ptr<DescriptorChannel>* out);

  const DescriptorAddress& address() const { return address_; }

  // Collective among the ranks of `peers`, and this one: gives this rank's descriptor to each peer
  // and hands each peer's to `receive`, one at a time, in the order of arrival. `addresses` has those
  // of all ranks. Goes on after a failure of one peer, so that the others get what they wait for, and
  // returns the first. hepErrorTimeout names the peers that sent nothing.
  Status exchange(int rank, const std::vector<int>& peers,
                  const std::vector<DescriptorAddress>& addresses, const Receiver& receive,
                  Deadline deadline);

 private:
  DescriptorChannel() = default;

  Descriptor listener_;
  DescriptorAddress address_{};
};

// Takes a copy of an offered descriptor out of its process. Needs the right to trace that process.
// hepErrorPeerLost if the process is gone.
Status take_descriptor(const DescriptorAddress& address, Descriptor* out);

}  // namespace hep
