// SPDX-License-Identifier: Apache-2.0
// Marks a function that kernels call, too. It is plain where the compiler knows no device.
#pragma once

#if defined(__CUDACC__)
#define HEP_HOST_DEVICE __host__ __device__
#else
#define HEP_HOST_DEVICE
#endif
