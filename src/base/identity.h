// SPDX-License-Identifier: Apache-2.0
// Who is who: numbers by which ranks recognise that they share a process or a host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace hep {

// Finds out which machine this is, once. A process that has few descriptors left may not be able to.
// It must not go on then, because it would take one machine for two, or two for one.
Status read_host_identity();

// The same for all processes of one boot of one machine, containers included. 0 where it cannot be
// read.
uint64_t host_identity();

// Unlike that of any other process; a forked child has its own.
uint64_t process_identity();

// Within one namespace, a process id means the same process to everyone.
uint64_t process_namespace();

// Bytes from the kernel that nobody can guess.
Status random_bytes(void* bytes, size_t count);

}  // namespace hep
