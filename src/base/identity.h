// SPDX-License-Identifier: Apache-2.0
// Numbers by which ranks recognise that they share a process or a host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace hep {

// Finds out once which machine this is. This fails if the process has no descriptor left. The
// caller must not go on then, because it would take one machine for two, or two for one.
Status read_host_identity();

// Returns a number that all processes of one boot of one machine share, containers included; 0 if
// it cannot be read.
uint64_t host_identity();

// Returns a number that no other process has. A forked child has its own.
uint64_t process_identity();

// Returns the namespace of process ids. A process id means the same process to all in one
// namespace.
uint64_t process_namespace();

// Fetches bytes from the kernel that nobody can guess.
Status random_bytes(void* bytes, size_t count);

}  // namespace hep
