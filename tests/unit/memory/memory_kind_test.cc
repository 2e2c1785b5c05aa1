// SPDX-License-Identifier: Apache-2.0
// Which kind of memory is used, and the kinds that need CUDA.
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu/device.h"
#include "memory/choose_kind.h"
#include "memory_fixture.h"

#ifdef HEP_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace hep {
namespace {

// -------------------------------------------------------------------------------------- choice

constexpr uint32_t kHost = 1u << 0, kDescriptor = 1u << 1, kIpc = 1u << 2, kFabric = 1u << 3;

MemoryKind chosen(std::vector<uint32_t> masks, bool several_hosts) {
  MemoryKind kind = MemoryKind::host_descriptor;
  const Status status = choose_memory_kind(hepBackendCuda, masks, several_hosts, &kind);
  EXPECT_TRUE(status.ok()) << status.message();
  return kind;
}

TEST(MemoryKindChoice, TakesTheFirstThatEveryRankHas) {
  const uint32_t all = kDescriptor | kIpc | kFabric;
  EXPECT_EQ(chosen({all, all, all}, false), MemoryKind::cuda_descriptor);
  EXPECT_EQ(chosen({all, kIpc | kFabric, all}, false), MemoryKind::cuda_ipc);
  EXPECT_EQ(chosen({all, kFabric, all}, false), MemoryKind::cuda_fabric);
}

TEST(MemoryKindChoice, TakesFabricAcrossHosts) {
  EXPECT_EQ(chosen({kDescriptor | kIpc | kFabric, kDescriptor | kFabric}, true),
            MemoryKind::cuda_fabric);
}

TEST(MemoryKindChoice, NamesARankForEveryMissingKind) {
  MemoryKind kind;
  const Status one = choose_memory_kind(hepBackendCuda, {kDescriptor, kIpc, 0}, false, &kind);
  expect_error(one, hepErrorUnsupported, "cuda_descriptor on rank 1");
  expect_error(one, hepErrorUnsupported, "cuda_ipc on rank 0");
  expect_error(choose_memory_kind(hepBackendCuda, {kFabric, kIpc}, true, &kind),
               hepErrorUnreachable, "cuda_fabric on rank 1");
}

TEST(MemoryKindChoice, KeepsTheHostBackendOnOneHost) {
  MemoryKind kind = MemoryKind::cuda_ipc;
  EXPECT_TRUE(choose_memory_kind(hepBackendHost, {kHost, kHost}, false, &kind).ok());
  EXPECT_EQ(kind, MemoryKind::host_descriptor);
  expect_error(choose_memory_kind(hepBackendHost, {kHost, kHost}, true, &kind), hepErrorUnreachable,
               "several hosts");
  expect_error(choose_memory_kind(hepBackendHost, {kHost, 0}, false, &kind), hepErrorUnsupported,
               "host_descriptor on rank 1");
}

uint32_t probed(hepBackend_t backend, int device) {
  uint32_t mask = 0;
  const Status status = probe_memory_kinds(backend, device, &mask);
  EXPECT_TRUE(status.ok()) << status.message();
  return mask;
}

TEST(MemoryKindProbe, FindsHostMemoryWhateverTheSettingForDevices) {
  EXPECT_EQ(probed(hepBackendHost, -1), kHost);
  ::setenv("HEP_MEMORY", "ipc", 1);
  EXPECT_EQ(probed(hepBackendHost, -1), kHost);
  ::unsetenv("HEP_MEMORY");
}

TEST(MemoryKindProbe, ObeysTheSettingForDevices) {
  // In a child: a process that has used CUDA cannot fork any more.
  const pid_t child = fork_child([] {
    const uint32_t all = probed(hepBackendCuda, 0);
    EXPECT_EQ(all & ~(kDescriptor | kIpc | kFabric), 0u);
    const std::pair<const char*, uint32_t> choices[] = {
        {"auto", ~0u}, {"descriptor", kDescriptor}, {"ipc", kIpc}, {"fabric", kFabric}};
    for (const auto& [text, mask] : choices) {
      ::setenv("HEP_MEMORY", text, 1);
      EXPECT_EQ(probed(hepBackendCuda, 0), all & mask) << text;
    }
    ::setenv("HEP_MEMORY", "wrong", 1);
    uint32_t none = 0;
    expect_error(probe_memory_kinds(hepBackendCuda, 0, &none), hepErrorInvalidArgument,
                 "HEP_MEMORY");
  });
  EXPECT_EQ(exit_code(child), 0);
}

constexpr MemoryKind kDescriptorKind = MemoryKind::cuda_descriptor;
constexpr MemoryKind kIpcKind = MemoryKind::cuda_ipc;

TEST(MemoryKindTrials, ThatFailForWantOfMemorySayNothingOfTheKind) {
  const Status full(hepErrorOutOfMemory, "device 0 has no room for 2097152 bytes");
  const Status broken(hepErrorUnsupported, "no such handles");
  uint32_t mask = 0;
  expect_error(working_memory_kinds({{kDescriptorKind, broken}, {kIpcKind, full}}, &mask),
               hepErrorOutOfMemory, "no room for 2097152 bytes");
  EXPECT_TRUE(working_memory_kinds({{kDescriptorKind, full}, {kIpcKind, Status()}}, &mask).ok());
  EXPECT_EQ(mask, kIpc);
}

TEST(MemoryKindTrials, ThatFailOtherwiseLeaveTheKindOut) {
  const Status broken(hepErrorUnsupported, "no such handles");
  uint32_t mask = 0;
  EXPECT_TRUE(working_memory_kinds({{kDescriptorKind, Status()}, {kIpcKind, broken}}, &mask).ok());
  EXPECT_EQ(mask, kDescriptor);
  EXPECT_TRUE(working_memory_kinds({{kDescriptorKind, broken}, {kIpcKind, broken}}, &mask).ok());
  EXPECT_EQ(mask, 0u);
}

// --------------------------------------------------------------------------------------- CUDA

TEST(CudaMemory, IsRefusedWithASentenceWhereThereIsNone) {
  constexpr int kHasDevice = 77;
  const pid_t child = fork_child([] {
    DeviceUuid uuid;
    const Status status = device_uuid(0, &uuid);
    if (status.ok()) ::_exit(kHasDevice);
    expect_error(status, hepErrorUnsupported, "CUDA");
    EXPECT_EQ(probed(hepBackendCuda, 0), 0u);
    for (const MemoryKind kind :
         {MemoryKind::cuda_descriptor, MemoryKind::cuda_ipc, MemoryKind::cuda_fabric}) {
      std::unique_ptr<Window> window;
      expect_error(Window::create(kind, 0, kBytes, &window), hepErrorUnsupported, "CUDA");
      EXPECT_EQ(window, nullptr);
    }
  });
  const int code = exit_code(child);
  if (code == kHasDevice) GTEST_SKIP() << "there is a device";
  EXPECT_EQ(code, 0);
}

#ifdef HEP_HAVE_CUDA

class CudaWindow : public testing::TestWithParam<MemoryKind> {
 protected:
  // Ranks share the devices there are.
  static int device(int rank) {
    int count = 1;
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
    return rank % count;
  }

  // In a child, because a process that has used CUDA must not fork.
  static bool works() {
    return exit_code(fork_child([] {
             ::_exit(probed(hepBackendCuda, 0) & memory_kind_bit(GetParam()) ? 0 : 1);
           })) == 0;
  }

  static void exchange_bytes(World& world, int rank) {
    const auto window = connect_window(world, rank, keep, GetParam(), device(rank));
    ASSERT_TRUE(window);
    ASSERT_EQ(cudaSetDevice(device(rank)), cudaSuccess);
    const int n = world.num_ranks();
    std::string bytes(kBytes, 'x');
    for (int r = 0; r < n; ++r) {
      ASSERT_EQ(cudaMemcpy(bytes.data(), window->address(r), kBytes, cudaMemcpyDefault),
                cudaSuccess);
      EXPECT_EQ(bytes, std::string(kBytes, '\0'));
    }
    ASSERT_TRUE(world.barrier());
    for (int r = 0; r < n; ++r) {
      const char word[2] = {static_cast<char>(rank + 1), static_cast<char>(r + 1)};
      ASSERT_EQ(
          cudaMemcpy(static_cast<char*>(window->address(r)) + 2 * rank, word, 2, cudaMemcpyDefault),
          cudaSuccess);
    }
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ASSERT_TRUE(world.barrier());
    ASSERT_EQ(cudaMemcpy(bytes.data(), window->address(rank), 2 * n, cudaMemcpyDefault),
              cudaSuccess);
    for (int r = 0; r < n; ++r) {
      EXPECT_EQ(bytes[2 * r], r + 1);
      EXPECT_EQ(bytes[2 * r + 1], rank + 1);
    }
    ASSERT_TRUE(world.barrier());
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds, CudaWindow,
                         testing::Values(MemoryKind::cuda_descriptor, MemoryKind::cuda_ipc,
                                         MemoryKind::cuda_fabric),
                         [](const auto& info) { return memory_kind_name(info.param); });

TEST_P(CudaWindow, IsZeroAtFirstAndSharedByProcesses) {
  if (!works()) GTEST_SKIP() << "this kind of memory does not work here";
  World world(4);
  run_processes(4, 1, [&](int rank) { exchange_bytes(world, rank); });
}

TEST_P(CudaWindow, IsSharedByThreadsAndProcesses) {
  if (!works()) GTEST_SKIP() << "this kind of memory does not work here";
  World world(4);
  run_processes(2, 2, [&](int rank) { exchange_bytes(world, rank); });
  World threads(4);
  run_processes(1, 4, [&](int rank) { exchange_bytes(threads, rank); });
}

TEST(CudaMemory, OfAFullDeviceCannotBeTried) {
  constexpr int kNoDevice = 77;
  const pid_t child = fork_child([] {
    void* block = nullptr;
    size_t bytes = size_t{1} << 40;
    if (cudaMalloc(&block, 256) != cudaSuccess) ::_exit(kNoDevice);
    while (bytes >= 256)
      if (cudaMalloc(&block, bytes) != cudaSuccess) bytes /= 2;
    uint32_t mask = 0;
    const Status status = probe_memory_kinds(hepBackendCuda, 0, &mask);
    expect_error(status, hepErrorOutOfMemory, "device 0 has no room for");
  });
  const int code = exit_code(child);
  if (code == kNoDevice) GTEST_SKIP() << "there is no device";
  EXPECT_EQ(code, 0);
}

#endif  // HEP_HAVE_CUDA

}  // namespace
}  // namespace hep
