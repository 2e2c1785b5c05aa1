// SPDX-License-Identifier: Apache-2.0
// The default floating-point environment, for the arithmetic of rows: to nearest even, denormal
// numbers as they are, no traps. Results do not depend on what the calling thread has set.
#pragma once

#include <cfenv>

namespace hep {

// From construction to destruction, on one thread, which then has its own environment and flags
// back.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&callers_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  std::fenv_t callers_;
};

}  // namespace hep
