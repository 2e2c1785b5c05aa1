// SPDX-License-Identifier: Apache-2.0
// The calling thread's current device. This header is also for code that is compiled without CUDA.
#pragma once

#include <array>
#include <functional>

#include "base/status.h"

namespace hep {

// Runs the body, which may bind the thread to other devices, and then makes the device of before
// current again. Without CUDA it only runs the body.
Status keep_current_device(const std::function<Status()>& body);

// Returns an error while a stream is being captured into a graph. CUDA reports a capture only by
// refusing a call. The refused call ends the capture, as every call does that is not allowed there.
Status check_not_capturing(int device);

// Counts the SMs of a device. hepErrorUnsupported without CUDA.
Status count_sms(int device, int* num_sms);

// Returns the major number of a device's compute capability; 0 if there is no such device.
int capability_major(int device);

// The name of a device that is equal in every process. An ordinal is not.
using DeviceUuid = std::array<unsigned char, 16>;

// hepErrorUnsupported without CUDA, driver or such a device.
Status device_uuid(int device, DeviceUuid* out);

}  // namespace hep
