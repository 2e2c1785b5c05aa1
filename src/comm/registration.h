// SPDX-License-Identifier: Apache-2.0
// hepCommRegister and hepCommDeregister: steps that all ranks take together, or none does.
#pragma once

#include <cstddef>

#include "base/status.h"
#include "comm/parts.h"

namespace hep {

Status register_memory(CommParts& comm, void* pointer, size_t bytes);
Status deregister_memory(CommParts& comm, void* pointer);

}  // namespace hep
