// SPDX-License-Identifier: Apache-2.0
// The processes of a run: what the harness needs of MPI. processes_mpi.cc provides it, or
// processes_none.cc in a build without MPI.
#pragma once

#include <cstddef>

namespace harness::processes {

bool init(int* argc, char*** argv);  // false if this build has no MPI
void finalize();
int count();
int index();

// Called by the thread that called init().
void all_gather(const void* send, void* receive, size_t bytes);

}  // namespace harness::processes
