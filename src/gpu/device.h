// SPDX-License-Identifier: Apache-2.0
// The calling thread's current device, for those that are compiled without CUDA too.
#pragma once

#include <array>
#include <functional>

#include "base/status.h"

namespace hep {

// Runs the body, which may bind the thread to other devices, and makes the device current again that
// was current before. Without CUDA it only runs the body.
Status keep_current_device(const std::function<Status()>& body);

// Refuses what cannot be done while a stream is being captured into a graph. CUDA tells that only by
// refusing a call, which ends the capture, as any call does that is not allowed there.
Status check_not_capturing(int device);

// The SMs of a device; hepErrorUnsupported where there is no CUDA.
Status count_sms(int device, int* num_sms);

// The major number of a device's compute capability; 0 where there is no such device.
int capability_major(int device);

// A device under the name that it has in every process, whatever ordinals the process gives out.
using DeviceUuid = std::array<unsigned char, 16>;

// hepErrorUnsupported where there is no CUDA, no driver or no such device.
Status device_uuid(int device, DeviceUuid* out);

}  // namespace hep
