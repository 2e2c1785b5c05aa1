// SPDX-License-Identifier: Apache-2.0
#include "nccl.h"

#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>
#include <type_traits>
#include <vector>

namespace perf {
namespace {

constexpr const char* kLibrary = "libnccl.so.2";

// Of ncclResult_t and ncclDataType_t.
constexpr int kSuccess = 0;
constexpr int kUint8 = 1;

}  // namespace

const Nccl& Nccl::instance() {
  // Never destroyed: NCCL's threads may outlive everything else.
  static const Nccl* const nccl = new Nccl;
  return *nccl;
}

Nccl::Nccl() {
  const char* const chosen = std::getenv("HEP_NCCL_LIBRARY");
  const std::string name = chosen != nullptr && *chosen != '\0' ? chosen : kLibrary;
  void* const library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const reason = ::dlerror();
    refusal_ = "NCCL could not be opened: " + std::string(reason != nullptr ? reason : name);
    return;
  }
  const auto find = [&](const char* function_name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(
        ::dlsym(library, function_name));
    if (*function == nullptr) refusal_ = name + " has no function " + function_name;
  };
  find("ncclGetErrorString", &get_error_string_);
  find("ncclGetVersion", &get_version_);
  find("ncclGetUniqueId", &get_unique_id_);
  find("ncclCommInitRank", &comm_init_rank_);
  find("ncclCommAbort", &comm_abort_);
  find("ncclGroupStart", &group_start_);
  find("ncclGroupEnd", &group_end_);
  find("ncclSend", &send_);
  find("ncclRecv", &receive_);
  find("ncclAllGather", &all_gather_);
}

std::string Nccl::version() const {
  int version = 0;
  check(get_version_(&version), "ncclGetVersion");
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

void Nccl::check(int result, const char* call) const {
  if (result == kSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + get_error_string_(result));
}

NcclComm::NcclComm(harness::World& world, int rank) : nccl_(Nccl::instance()) {
  Nccl::UniqueId mine{};
  if (rank == 0) nccl_.check(nccl_.get_unique_id_(&mine), "ncclGetUniqueId");
  std::vector<Nccl::UniqueId> ids(world.num_ranks());
  if (!world.all_gather(rank, &mine, ids.data(), sizeof mine)) {
    throw std::runtime_error("another rank failed");
  }
  nccl_.check(nccl_.comm_init_rank_(&comm_, world.num_ranks(), ids[0], rank), "ncclCommInitRank");
}

// Unlike ncclCommDestroy, this does not wait for ranks that failed.
NcclComm::~NcclComm() {
  if (comm_ != nullptr) nccl_.comm_abort_(comm_);
}

void NcclComm::begin_group() const { nccl_.check(nccl_.group_start_(), "ncclGroupStart"); }

void NcclComm::end_group() const { nccl_.check(nccl_.group_end_(), "ncclGroupEnd"); }

void NcclComm::send(const void* from, size_t bytes, int peer, hepStream_t stream) const {
  nccl_.check(nccl_.send_(from, bytes, kUint8, peer, comm_, stream), "ncclSend");
}

void NcclComm::receive(void* to, size_t bytes, int peer, hepStream_t stream) const {
  nccl_.check(nccl_.receive_(to, bytes, kUint8, peer, comm_, stream), "ncclRecv");
}

void NcclComm::all_gather(const void* from, void* to, size_t bytes, hepStream_t stream) const {
  nccl_.check(nccl_.all_gather_(from, to, bytes, kUint8, comm_, stream), "ncclAllGather");
}

}  // namespace perf
