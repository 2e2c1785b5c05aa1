// SPDX-License-Identifier: Apache-2.0
#include "crew.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <thread>

namespace faults {
namespace {

// False: it did not come true in time.
bool await(const std::function<bool()>& condition) {
  const double deadline = now_ms() + kPatienceMs;
  while (!condition()) {
    if (now_ms() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

void run_rank(int rank, Shared& shared, const std::function<void(int, Shared&)>& body) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a crew does not outlive its test
  try {
    body(rank, shared);
  } catch (const std::exception& failure) {
    Report& report = shared.ranks[rank].report;
    std::snprintf(report.complaint, sizeof report.complaint, "%s", failure.what());
  }
}

}  // namespace

double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Crew::Crew(int num_ranks, const std::function<void(int, Shared&)>& body) {
  void* const memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no shared memory for the crew");
  shared_ = new (memory) Shared{};
  std::fflush(nullptr);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const pid_t process = ::fork();
    if (process == 0) {
      run_rank(rank, *shared_, body);
      ::_exit(EXIT_SUCCESS);
    }
    if (process < 0) throw std::runtime_error("no process for a rank");
    processes_.push_back(process);
  }
}

Crew::~Crew() {
  for (const pid_t process : processes_) {
    if (process <= 0) continue;
    ::kill(process, SIGKILL);
    ::waitpid(process, nullptr, 0);
  }
  ::munmap(shared_, sizeof(Shared));
}

bool Crew::reach(int rank, int point) {
  return await([&] { return shared_->ranks[rank].point.load() >= point; });
}

void Crew::signal(int rank, int number) { ::kill(processes_[rank], number); }

bool Crew::ended(int rank) {
  int status = 0;
  const bool gone =
      await([&] { return ::waitpid(processes_[rank], &status, WNOHANG) == processes_[rank]; });
  if (gone) processes_[rank] = -1;
  return gone && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS;
}

void await_gate(const Shared& shared, int gate) {
  if (!await([&] { return shared.gates[gate].load() != 0; }))
    throw std::runtime_error("the test did not open a gate in time");
}

void await_point(const Shared& shared, int rank, int point) {
  if (!await([&] { return shared.ranks[rank].point.load() >= point; }))
    throw std::runtime_error("rank " + std::to_string(rank) + " did not come in time");
}

}  // namespace faults
