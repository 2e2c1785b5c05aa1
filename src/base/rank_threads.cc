// SPDX-License-Identifier: Apache-2.0
#include "base/rank_threads.h"

#include <exception>
#include <new>
#include <system_error>
#include <thread>

namespace hep {
namespace {

// Joins its threads at the end of the block, also if an exception ends it.
class JoinedThreads {
 public:
  JoinedThreads() = default;
  JoinedThreads(const JoinedThreads&) = delete;
  JoinedThreads& operator=(const JoinedThreads&) = delete;
  ~JoinedThreads() {
    for (std::thread& thread : threads_) thread.join();
  }

  template <typename Body>
  void start(Body body) {
    threads_.emplace_back(std::move(body));
  }

 private:
  std::vector<std::thread> threads_;
};

// The sentences are short enough for a std::string to hold them without an allocation.
void run_rank(int rank, const std::function<Status(int)>& body, Status* status) noexcept {
  try {
    *status = body(rank);
  } catch (const std::bad_alloc&) {
    *status = Status(hepErrorOutOfMemory, "no host memory");
  } catch (...) {
    *status = Status(hepErrorInternal, "an exception");
  }
}

}  // namespace

std::vector<Status> run_rank_threads(int num_ranks, const std::function<Status(int)>& body) {
  std::vector<Status> statuses(num_ranks);
  {
    JoinedThreads threads;
    for (int rank = 0; rank < num_ranks; ++rank) {
      try {
        threads.start([&, rank] { run_rank(rank, body, &statuses[rank]); });
      } catch (const std::system_error& failure) {
        statuses[rank] =
            error(hepErrorSystem, "rank %d: no thread could be started: %s", rank, failure.what());
      }
    }
  }
  return statuses;
}

Status most_telling(const std::vector<Status>& statuses) {
  Status chosen;
  for (const Status& status : statuses) {
    if (status.ok()) continue;
    if (status.result() != hepErrorTimeout && status.result() != hepErrorPeerLost) return status;
    if (chosen.ok()) chosen = status;
  }
  return chosen;
}

}  // namespace hep
