// SPDX-License-Identifier: Apache-2.0
// Machines are told apart, or it is an error.
#include "base/identity.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace hep {
namespace {

// What a process has read once stays known, so each test has one of its own.
bool is_true_in_child(const std::function<bool()>& condition) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(condition() ? 0 : 1);
  int status = -1;
  ::waitpid(child, &status, 0);
  return status == 0;
}

void limit_descriptors(rlim_t count) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = count;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

TEST(HostIdentity, ThatCannotBeReadIsAnErrorThatNamesTheLimit) {
  EXPECT_TRUE(is_true_in_child([] {
    limit_descriptors(1);
    const Status status = read_host_identity();
    return status.result() == hepErrorSystem &&
           status.message().find("RLIMIT_NOFILE is 1") != std::string::npos;
  }));
}

TEST(HostIdentity, IsReadOnce) {
  EXPECT_TRUE(is_true_in_child([] {
    if (!read_host_identity().ok()) return false;
    const uint64_t identity = host_identity();
    limit_descriptors(1);
    return identity != 0 && read_host_identity().ok() && host_identity() == identity;
  }));
}

}  // namespace
}  // namespace hep
