// SPDX-License-Identifier: Apache-2.0
// What nearly every test with ranks includes, compiled once.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"
