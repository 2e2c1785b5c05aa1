// SPDX-License-Identifier: Apache-2.0
// The functions of MPI that the harness needs. processes_mpi.cc has them, or processes_none.cc in a
// build without MPI.
#pragma once

#include <cstddef>

namespace harness::processes {

bool init(int* argc, char*** argv);  // false if this build has no MPI
void finalize();
int count();
int index();

// Only the thread that called init() may call these.
void all_gather(const void* send, void* receive, size_t bytes);

}  // namespace harness::processes
