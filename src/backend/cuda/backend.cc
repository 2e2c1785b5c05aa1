// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/backend.h"

#include <utility>

#include "backend/cuda/launch.h"
#include "backend/cuda/routing.h"
#include "gpu/device.h"
#include "protocol/at.h"
#include "protocol/location.h"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep {
namespace {

// This compute capability brought TMA bulk copies and mbarriers.
constexpr int kMinCapabilityMajor = 9;

// Blocks wait for each other, so all must find room at the same time. A block of dispatch or
// combine may take an SM.
Status check_plan(const CudaLane& lane, int device) {
  int num_sms = 0;
  HEP_TRY(count_sms(device, &num_sms));
  const int blocks = most_blocks(lane.plan);
  if (blocks > num_sms)
    return error(hepErrorInvalidArgument, "%s for %d SMs, but device %d has %d",
                 lane.context.lane.mode == hepModeLowLatency ? "low_latency_blocks asks"
                                                             : "the block counts ask",
                 blocks, device, num_sms);
  return Status();
}

constexpr uint64_t kPartAlignment = 256;  // of each part of the scratch

}  // namespace

CudaBackend::CudaBackend(BackendContext context)
    : rank_(context.rank),
      device_(context.device),
      timeout_ms_(context.timeout_ms),
      registrations_(*context.registrations),
      contexts_(std::move(context.lanes)) {
  const Gpu gpu{&profile_of(capability_major(context.device)), context.sms};
  for (const LaneContext& lane : contexts_) lanes_.push_back(std::make_unique<CudaLane>(lane, gpu));
}

CudaBackend::~CudaBackend() {
  if (host_state() == nullptr) return;
  abort();
  wait_for_own_work();
}

// Does not wait for the work of others on the device, because it may wait for a peer.
void CudaBackend::wait_for_own_work() {
  if (!context_->check_not_reset().ok()) return;
  const CurrentContext current(*context_);
  const OutsideOfCaptures outside(context_->driver());
  bool all_ended = true;
  for (const auto& lane : lanes_) all_ended &= lane->work.wait();
  if (!all_ended) cudaDeviceSynchronize();
}

Status CudaBackend::start() {
  const DeviceGuard guard(device_);
  HEP_TRY(guard.status());
  HEP_TRY(DeviceContext::open(device_, &context_));
  for (const auto& lane : lanes_) HEP_TRY(check_plan(*lane, device_));
  HEP_CUDA_TRY(prepare_kernels());

  for (const auto& lane : lanes_) HEP_TRY(lane->work.start(context_));
  HEP_TRY(allocate());
  for (const auto& lane : lanes_) start_lane(*lane);
  return watch_.start(context_);
}

// Allocates all scratch in one piece, because the driver hands out whole megabytes.
Status CudaBackend::allocate() {
  uint64_t bytes = 0;
  const auto reserve = [&bytes](uint64_t part) {
    const uint64_t offset = bytes;
    bytes = align_up(bytes + part, kPartAlignment);
    return offset;
  };
  const uint64_t firsts = reserve(sizeof(FirstErrors));
  registered_offset_ =
      reserve(sizeof(void*) * kMaxRegistrations * lanes_.front()->context.lane.shape.num_ranks);
  std::vector<uint64_t> states, block_counts;
  for (const auto& lane : lanes_) {
    states.push_back(reserve(sizeof(DeviceState)));
    block_counts.push_back(
        reserve(block_count_bytes(lane->context.lane.shape, lane->plan.routing_blocks)));
  }
  HEP_TRY(scratch_.allocate(device_, bytes));
  HEP_TRY(host_state_.allocate(sizeof(HostState)));
  for (size_t i = 0; i < lanes_.size(); ++i) {
    KernelContext& kernel = lanes_[i]->kernel;
    kernel.state = at<DeviceState>(scratch_.get(), states[i]);
    kernel.block_counts = at<uint32_t>(scratch_.get(), block_counts[i]);
    kernel.firsts = at<FirstErrors>(scratch_.get(), firsts);
    kernel.registered = at<void*>(scratch_.get(), registered_offset_);
    kernel.host = static_cast<HostState*>(host_state_.device_address());
  }
  return Status();
}

void CudaBackend::start_lane(CudaLane& lane) {
  const LaneContext& context = lane.context;
  KernelContext& kernel = lane.kernel;
  kernel.window_layout = context.lane.window_layout;
  kernel.timeout_ns = static_cast<uint64_t>(timeout_ms_) * 1000000;
  kernel.rank = rank_;
  kernel.mode = context.lane.mode;
  kernel.lane = context.lane.number;
  for (size_t r = 0; r < context.windows.size(); ++r) kernel.windows[r] = context.windows[r];
}

Status CudaBackend::create_routing(int lane, const RoutingRequest& request,
                                   std::unique_ptr<BackendRouting>* routing) {
  auto created = std::make_unique<CudaRouting>(*this, *lanes_[lane], request);
  if (request.memory == nullptr) HEP_TRY(created->take_memory());
  *routing = std::move(created);
  return Status();
}

// Does not wait for running kernels: none reads the address of a slot before an operation uses the
// slot.
Status CudaBackend::set_registered(const std::vector<RegisteredAddress>& addresses) {
  const DeviceGuard guard(device_);
  HEP_TRY(guard.status());
  const int num_ranks = lanes_.front()->context.lane.shape.num_ranks;
  for (const RegisteredAddress& entry : addresses)
    HEP_TRY(
        scratch_.write(registered_offset_ + sizeof(void*) * (entry.slot * num_ranks + entry.rank),
                       &entry.address, sizeof entry.address));
  return Status();
}

void CudaBackend::stop(hepResult_t result) noexcept {
  const Lock lock(mutex_);
  if (stop_result_ != hepSuccess) return;
  stop_result_ = result;
  HostState& host = *host_state();
  __atomic_store_n(&host.stop_result, static_cast<uint32_t>(result), __ATOMIC_RELEASE);
  __atomic_store_n(&host.interrupt, uint64_t{1}, __ATOMIC_RELEASE);
}

void CudaBackend::peer_left(int peer) noexcept {
  HostState& host = *host_state();
  __atomic_store_n(&host.peer_left[peer], 1u, __ATOMIC_RELEASE);
  __atomic_store_n(&host.interrupt, uint64_t{1}, __ATOMIC_RELEASE);
}

hepFailure_t CudaBackend::failure() const {
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  if (__atomic_load_n(&host_state()->failure_ready, __ATOMIC_ACQUIRE) != 0) {
    const hepFailure_t& record = host_state()->failure;
    failure.result = record.result;
    failure.operation = record.operation;
    failure.phase = record.phase;
    failure.rank = record.rank;
    failure.missing_rank = record.missing_rank;
    failure.via_rank = -1;
    failure.number = record.number;
    failure.expected = record.expected;
    failure.seen = record.seen;
    failure.mode = record.mode;
    failure.lane = record.lane;
    return failure;
  }
  const Lock lock(mutex_);
  failure.rank = rank_;
  failure.result = stop_result_;
  failure.missing_rank = failure.via_rank = -1;
  return failure;
}

Backend::BadIndex CudaBackend::bad_index() const {
  const HostState& host = *host_state();
  if (__atomic_load_n(&host.bad_index_ready, __ATOMIC_ACQUIRE) == 0) return {false, 0, 0, 0};
  return {true, host.bad_index_token, host.bad_index_k, host.bad_index_value};
}

Backend::Overflow CudaBackend::overflow() const {
  const HostState& host = *host_state();
  if (__atomic_load_n(&host.overflow_ready, __ATOMIC_ACQUIRE) == 0) return {};
  return {true,
          host.overflow_mode,
          host.overflow_lane,
          host.overflow_number,
          host.overflow_needed,
          host.overflow_capacity};
}

Status CudaBackend::take_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory>* memory) {
  {
    const Lock lock(lane.mutex);
    if (!lane.spare_routing_memory.empty()) {
      *memory = std::move(lane.spare_routing_memory.back());
      lane.spare_routing_memory.pop_back();
      return Status();
    }
  }
  // Neither the allocation nor its zeroing may become part of a graph that is being captured.
  const CurrentContext current(*context_);
  HEP_TRY(current.status());
  const OutsideOfCaptures outside(context_->driver());
  auto created = std::make_unique<DeviceMemory>();
  HEP_TRY(created->allocate(device_, lane.context.lane.routing_layout.total));
  const Lock lock(lane.mutex);
  lane.spare_routing_memory.reserve(++lane.num_routing_memories);  // returning it must not fail
  *memory = std::move(created);
  return Status();
}

void CudaBackend::return_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory> memory) {
  const Lock lock(lane.mutex);
  lane.spare_routing_memory.push_back(std::move(memory));
}

Status create_cuda_backend(BackendContext context, std::unique_ptr<Backend>* backend) {
  auto created = std::make_unique<CudaBackend>(std::move(context));
  HEP_TRY(created->start());
  *backend = std::move(created);
  return Status();
}

Status find_cuda_device(int* device) {
  HEP_CUDA_TRY(cudaGetDevice(device));
  int major = 0;
  HEP_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, *device));
  if (major < kMinCapabilityMajor)
    return error(hepErrorUnsupported,
                 "device %d has compute capability %d.x, the cuda backend needs %d.0", *device,
                 major, kMinCapabilityMajor);
  int shared_bytes = 0;
  HEP_CUDA_TRY(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, *device));
  if (shared_bytes < kMaxSharedBytes)
    return error(hepErrorUnsupported,
                 "device %d offers %d bytes of shared memory a block, the cuda backend needs %d",
                 *device, shared_bytes, kMaxSharedBytes);
  return Status();
}

Status bind_cuda_device(int device) {
  int count = 0;
  HEP_CUDA_TRY(cudaGetDeviceCount(&count));
  if (device < 0 || device >= count)
    return error(hepErrorInvalidArgument, "device is %d, must be 0 to %d", device, count - 1);
  HEP_CUDA_TRY(cudaSetDevice(device));
  return Status();
}

}  // namespace hep
