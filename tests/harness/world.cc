// SPDX-License-Identifier: Apache-2.0
#include "world.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <thread>

#include "device.h"
#include "processes.h"

namespace harness {
namespace {

constexpr int kDefaultThreads = 4;

// The callback of hepCommInitCallback. Its context is the rank.
int all_gather_callback(const void* send, void* receive, size_t bytes, void* context) {
  return world().all_gather(*static_cast<int*>(context), send, receive, bytes) ? 0 : 1;
}

}  // namespace

World& world() {
  static World instance;
  return instance;
}

bool World::started_by_mpi() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr;
}

int World::num_devices() { return device::count(); }

bool World::init(int* argc, char*** argv, const WorldOptions& options) {
  World& self = world();
  if (started_by_mpi() && !processes::init(argc, argv)) {
    std::fprintf(stderr, "started by mpirun, but this program was built without a usable MPI\n");
    return false;
  }
  self.num_processes_ = processes::count();
  self.process_ = processes::index();
  self.num_devices_ = options.backend == hepBackendHost ? 0 : num_devices();
  if (options.backend == hepBackendCuda && self.num_devices_ == 0) {
    std::fprintf(stderr, "backend cuda was asked for, but there is no usable device\n");
    return false;
  }
  self.domain_size_ = options.domain_size;
  self.backend_ = self.num_devices_ > 0 ? hepBackendCuda : hepBackendHost;

  int num_ranks = options.num_ranks;
  if (num_ranks == 0 && started_by_mpi()) num_ranks = self.num_processes_;
  if (num_ranks == 0) num_ranks = self.num_devices_ > 0 ? self.num_devices_ : kDefaultThreads;
  if (num_ranks < 1 || num_ranks % self.num_processes_ != 0) {
    std::fprintf(stderr, "%d ranks cannot be spread evenly over %d processes\n", num_ranks,
                 self.num_processes_);
    return false;
  }
  self.num_local_ranks_ = num_ranks / self.num_processes_;
  self.num_gpus_ = self.count_gpus();
  return true;
}

void World::finalize() { processes::finalize(); }

int World::device(int rank) const { return num_devices_ == 0 ? -1 : rank % num_devices_; }

// Counts by UUID. Two processes that each see one GPU both call it device 0, and it may be the same
// one.
int World::count_gpus() const {
  if (backend_ == hepBackendHost) return 0;
  std::vector<device::Uuid> mine;
  for (int rank = first_rank(); rank < first_rank() + num_local_ranks_; ++rank)
    mine.push_back(device::uuid(device(rank)));
  std::vector<device::Uuid> all(num_ranks());
  processes::all_gather(mine.data(), all.data(), mine.size() * sizeof(device::Uuid));
  std::sort(all.begin(), all.end());
  return static_cast<int>(std::unique(all.begin(), all.end()) - all.begin());
}

void World::run(const std::function<void(int)>& body) {
  std::exception_ptr exception;
  std::vector<std::thread> threads;
  for (int rank = first_rank(); rank < first_rank() + num_local_ranks_; ++rank) {
    threads.emplace_back([&, rank] {
      std::exception_ptr thrown;
      try {
        if (backend_ == hepBackendCuda) device::set_current(device(rank));
        body(rank);
      } catch (...) {
        thrown = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(mutex_);
      if (thrown && !exception) exception = thrown;
      ++departed_;
      changed_.notify_all();
    });
  }
  serve_collectives();
  for (std::thread& thread : threads) thread.join();
  departed_ = 0;
  if (exception) std::rethrow_exception(exception);
}

bool World::all_gather(int rank, const void* send, void* receive, size_t bytes) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (arrived_ == 0) {
    bytes_ = bytes;
    agreed_ = true;
    sent_.assign(bytes * num_local_ranks_, 0);
  }
  agreed_ = agreed_ && bytes == bytes_;
  if (agreed_ && bytes > 0) std::memcpy(&sent_[(rank - first_rank()) * bytes], send, bytes);
  ++arrived_;
  changed_.notify_all();
  const uint64_t round = round_;
  changed_.wait(lock, [&] { return round_ != round; });
  // The next round cannot end, and overwrite this one's result, before this rank has joined it.
  if (succeeded_ && bytes > 0) std::memcpy(receive, received_.data(), bytes * num_ranks());
  return succeeded_;
}

// The main thread's part of run(): completes a collective whenever each local rank has either come
// to it or ended, until the ranks of all processes have ended.
void World::serve_collectives() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return arrived_ + departed_ == num_local_ranks_; });
    const size_t bytes = arrived_ > 0 ? bytes_ : 0;
    const bool agreed = departed_ == 0 && agreed_;
    lock.unlock();
    bool all_departed = false;
    const bool succeeded = exchange(bytes, agreed, &all_departed);
    lock.lock();
    if (all_departed) return;
    succeeded_ = succeeded;
    arrived_ = 0;
    ++round_;
    changed_.notify_all();
  }
}

// Exchanges this process's part of a collective with the other processes.
bool World::exchange(size_t bytes, bool agreed, bool* all_departed) {
  struct Header {
    uint64_t bytes, agreed, departed;
  };
  const Header mine{bytes, agreed, departed_ == num_local_ranks_};
  std::vector<Header> headers(num_processes_);
  processes::all_gather(&mine, headers.data(), sizeof(Header));
  *all_departed =
      std::all_of(headers.begin(), headers.end(), [](const Header& h) { return h.departed != 0; });
  const bool all_agree = std::all_of(headers.begin(), headers.end(), [&](const Header& h) {
    return h.agreed != 0 && h.bytes == bytes;
  });
  if (!all_agree) return false;
  received_.resize(bytes * num_ranks());
  processes::all_gather(sent_.data(), received_.data(), bytes * num_local_ranks_);
  return true;
}

int World::max_over_processes(int value) const {
  std::vector<int> values(num_processes_);
  processes::all_gather(&value, values.data(), sizeof(int));
  return *std::max_element(values.begin(), values.end());
}

hepResult_t World::create_comm(int rank, const hepConfig_t& config, hepComm_t* comm) {
  hepConfig_t mine = config;
  if (mine.backend == hepBackendAuto) mine.backend = backend_;
  if (mine.domain_size == 0) mine.domain_size = domain_size_;
  if (num_processes_ > 1) {
    return hepCommInitCallback(comm, num_ranks(), rank, all_gather_callback, &rank, &mine);
  }
  struct Invitation {
    hepResult_t result;
    hepUniqueId_t id;
  };
  Invitation invitation{};
  if (rank == 0) invitation.result = hepGetUniqueId(&invitation.id);
  std::vector<Invitation> invitations(num_ranks());
  if (!all_gather(rank, &invitation, invitations.data(), sizeof(Invitation))) return hepErrorSystem;
  if (invitations[0].result != hepSuccess) return invitations[0].result;
  return hepCommInitRank(comm, num_ranks(), &invitations[0].id, rank, &mine);
}

}  // namespace harness
