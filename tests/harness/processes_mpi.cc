// SPDX-License-Identifier: Apache-2.0
// The processes of a run, by MPI.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "processes.h"

namespace harness::processes {
namespace {

bool joined = false;

}  // namespace

bool init(int* argc, char*** argv) {
  int provided = 0;
  joined = MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) == MPI_SUCCESS;
  return joined && provided >= MPI_THREAD_FUNNELED;
}

void finalize() {
  if (joined) MPI_Finalize();
  joined = false;
}

int count() {
  int size = 1;
  if (joined) MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

int index() {
  int rank = 0;
  if (joined) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

void all_gather(const void* send, void* receive, size_t bytes) {
  if (!joined) {
    if (bytes > 0) std::memcpy(receive, send, bytes);
    return;
  }
  const int size = static_cast<int>(bytes);
  MPI_Request request;
  MPI_Iallgather(send, size, MPI_BYTE, receive, size, MPI_BYTE, MPI_COMM_WORLD, &request);
  // Polls gently: where processes outnumber cores, a spinning one would hold up those it waits for.
  const auto patience = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
  for (int done = 0;;) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done) return;
    if (std::chrono::steady_clock::now() < patience) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
}

}  // namespace harness::processes
