// SPDX-License-Identifier: Apache-2.0
// Who is who: numbers by which ranks recognise that they share a process, a host or a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "status.h"

namespace hep {

// The same for all processes of one boot of one machine, containers included.
uint64_t host_identity();

// Unlike that of any other process; a forked child has its own.
uint64_t process_identity();

// Within one namespace, a process id means the same process to everyone.
uint64_t process_namespace();

// Bytes from the kernel that nobody can guess.
Status random_bytes(void* bytes, size_t count);

// A device under the name that it has in every process, whatever ordinals the process gives out.
struct DeviceIdentity {
  unsigned char uuid[16];
  char name[64];
  int32_t capability_major, capability_minor;
};

// hepErrorUnsupported where there is no CUDA, no driver or no such device.
Status device_identity(int device, DeviceIdentity* out);

}  // namespace hep
