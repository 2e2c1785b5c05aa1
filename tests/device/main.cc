// SPDX-License-Identifier: Apache-2.0
// The program of the tests of device code.
#include <gtest/gtest.h>

#include <cstdio>

#include "backend/backend.h"

constexpr int kSkipped = 77;  // what Meson takes for a skipped test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  int device = 0;
  if (!hep::find_cuda_device(&device).ok()) {
    std::puts("skipped: there is no usable GPU");
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
