// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <utility>

#include "bench/cuda_check.h"
#include "bench/gpu.h"
#include "ceilings.h"
#include "transfer.h"

namespace bench {
namespace {

constexpr int kPasses = 8;  // a few milliseconds
constexpr int kTrials = 3;

// One GPU with a region to read from, a region to write to, and a stream.
class Gpu {
 public:
  explicit Gpu(int device) : device_(device) {
    use();
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&start_), "cudaEventCreate");
    check(cudaEventCreate(&stop_), "cudaEventCreate");
    source_ = allocate<char>(kRegionBytes);
    target_ = allocate<char>(kRegionBytes);
    wrong_ = allocate<unsigned long long>(sizeof *wrong_);
    check(cudaMemset(wrong_, 0, sizeof *wrong_), "cudaMemset");
    check(cudaMemset(target_, 0xff, kRegionBytes), "cudaMemset");
    check(launch_fill(source_, device, stream_), "fill");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  ~Gpu() {
    cudaSetDevice(device_);
    cudaFree(source_);
    cudaFree(target_);
    cudaFree(wrong_);
    if (start_) cudaEventDestroy(start_);
    if (stop_) cudaEventDestroy(stop_);
    if (stream_) cudaStreamDestroy(stream_);
  }

  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  int device() const { return device_; }
  char* source() const { return source_; }
  char* target() const { return target_; }
  unsigned long long* wrong() const { return wrong_; }
  cudaStream_t stream() const { return stream_; }

  void use() const { check(cudaSetDevice(device_), "cudaSetDevice"); }
  void start() const { check(cudaEventRecord(start_, stream_), "cudaEventRecord"); }
  void stop() const { check(cudaEventRecord(stop_, stream_), "cudaEventRecord"); }
  void synchronize() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  double seconds() const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

  unsigned long long count_wrong() const {
    unsigned long long count = 0;
    check(cudaMemcpy(&count, wrong_, sizeof count, cudaMemcpyDefault), "cudaMemcpy");
    return count;
  }

 private:
  template <typename T>
  static T* allocate(size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    return static_cast<T*>(memory);
  }

  int device_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  char *source_ = nullptr, *target_ = nullptr;
  unsigned long long* wrong_ = nullptr;
};

using Gpus = std::vector<std::unique_ptr<Gpu>>;
using Work = std::function<void(const Gpu& gpu)>;

void run_on_all(const Gpus& gpus, const Work& work) {
  for (const auto& gpu : gpus) {
    gpu->use();
    work(*gpu);
  }
  for (const auto& gpu : gpus) gpu->synchronize();
}

// Returns the best of a few measurements. All GPUs start together when everything has been
// enqueued, and the slowest counts.
double measure(const Gpus& gpus, const Work& work, double bytes) {
  run_on_all(gpus, work);
  double best = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<std::unique_ptr<Gate>> gates;
    for (const auto& gpu : gpus) {
      gpu->use();
      gates.push_back(std::make_unique<Gate>(gpu->stream()));
      gpu->start();
      work(*gpu);
      gpu->stop();
    }
    for (auto& gate : gates) gate->open();
    double slowest = 0;
    for (const auto& gpu : gpus) {
      gpu->synchronize();
      slowest = std::max(slowest, gpu->seconds());
    }
    best = std::max(best, bytes / slowest * 1e-9);
  }
  return best;
}

// The peers of a GPU are all others, in rotated order; a GPU alone is its own peer.
TransferArgs transfer_args(const Gpus& gpus, int gpu, bool targets, int passes) {
  TransferArgs args{};
  args.gpu = gpu;
  args.num_gpus = static_cast<int>(gpus.size());
  args.num_peers = std::max(1, args.num_gpus - 1);
  args.passes = passes;
  for (int i = 0; i < args.num_peers; ++i) {
    const Gpu& peer = *gpus[(gpu + 1 + i) % gpus.size()];
    args.peers[i] = targets ? peer.target() : peer.source();
  }
  return args;
}

// Moves everything once and checks every word, before any time counts.
void verify(const Gpus& gpus, int sms) {
  run_on_all(gpus, [&](const Gpu& gpu) {
    TransferArgs args = transfer_args(gpus, gpu.device(), false, 1);
    args.wrong = gpu.wrong();
    check(launch_load_from_peers(args, sms, gpu.stream()), "load from peers");
  });
  run_on_all(gpus, [&](const Gpu& gpu) {
    check(cudaMemsetAsync(gpu.target(), 0xff, kRegionBytes, gpu.stream()), "cudaMemsetAsync");
  });
  run_on_all(gpus, [&](const Gpu& gpu) {
    const TransferArgs args = transfer_args(gpus, gpu.device(), true, 1);
    check(launch_store_to_peers(args, sms, gpu.stream()), "store to peers");
  });
  run_on_all(gpus, [&](const Gpu& gpu) {
    TransferArgs args = transfer_args(gpus, gpu.device(), true, 1);
    args.wrong = gpu.wrong();
    check(launch_check_stores(args, gpu.target(), sms, gpu.stream()), "check stores");
  });
  for (const auto& gpu : gpus) {
    if (const unsigned long long wrong = gpu->count_wrong(); wrong != 0) {
      throw std::runtime_error("ceilings: " + std::to_string(wrong) + " wrong words on GPU " +
                               std::to_string(gpu->device()));
    }
  }
}

// Lets all GPUs address each other's memory until its destruction. The library is then measured as
// a program finds it that never asked for this.
class PeerAccess {
 public:
  // `*refusal` stays empty if every GPU can.
  PeerAccess(int num_gpus, std::string* refusal) {
    for (int gpu = 0; gpu < num_gpus; ++gpu) {
      for (int peer = 0; peer < num_gpus; ++peer) {
        if (peer == gpu) continue;
        int possible = 0;
        check(cudaDeviceCanAccessPeer(&possible, gpu, peer), "cudaDeviceCanAccessPeer");
        if (!possible) {
          *refusal = "GPU " + std::to_string(gpu) + " cannot access GPU " + std::to_string(peer);
          return;
        }
        check(cudaSetDevice(gpu), "cudaSetDevice");
        check(cudaDeviceEnablePeerAccess(peer, 0), "cudaDeviceEnablePeerAccess");
        enabled_.push_back({gpu, peer});
      }
    }
  }
  ~PeerAccess() {
    for (const auto& [gpu, peer] : enabled_) {
      cudaSetDevice(gpu);
      cudaDeviceDisablePeerAccess(peer);
    }
  }
  PeerAccess(const PeerAccess&) = delete;
  PeerAccess& operator=(const PeerAccess&) = delete;

 private:
  std::vector<std::pair<int, int>> enabled_;
};

}  // namespace

Ceilings measure_ceilings(int num_gpus, const std::vector<int>& sms) {
  Ceilings ceilings;
  ceilings.gpus = num_gpus;
  if (num_gpus > kMaxGpus) {
    ceilings.skipped = "more than " + std::to_string(kMaxGpus) + " GPUs";
    return ceilings;
  }
  const PeerAccess access(num_gpus, &ceilings.skipped);
  if (!ceilings.skipped.empty()) return ceilings;
  Gpus gpus;
  for (int device = 0; device < num_gpus; ++device) gpus.push_back(std::make_unique<Gpu>(device));

  const double bytes = static_cast<double>(kRegionBytes) * kPasses;
  const auto add = [&](const char* name, int count, double factor, const Work& work) {
    ceilings.all.push_back({name, count, measure(gpus, work, bytes * factor)});
  };
  add("copy engine ring", 0, 1, [&](const Gpu& gpu) {
    const Gpu& next = *gpus[(gpu.device() + 1) % gpus.size()];
    for (int pass = 0; pass < kPasses; ++pass) {
      check(cudaMemcpyPeerAsync(next.target(), next.device(), gpu.source(), gpu.device(),
                                kRegionBytes, gpu.stream()),
            "cudaMemcpyPeerAsync");
    }
  });
  add("local copy", 0, 2, [](const Gpu& gpu) {
    for (int pass = 0; pass < kPasses; ++pass) {
      check(cudaMemcpyAsync(gpu.target(), gpu.source(), kRegionBytes, cudaMemcpyDefault,
                            gpu.stream()),
            "cudaMemcpyAsync");
    }
  });
  for (const int count : sms) {
    verify(gpus, count);
    add("TMA load from peers", count, 1, [&](const Gpu& gpu) {
      const TransferArgs args = transfer_args(gpus, gpu.device(), false, kPasses);
      check(launch_load_from_peers(args, count, gpu.stream()), "load from peers");
    });
    add("TMA store to peers", count, 1, [&](const Gpu& gpu) {
      const TransferArgs args = transfer_args(gpus, gpu.device(), true, kPasses);
      check(launch_store_to_peers(args, count, gpu.stream()), "store to peers");
    });
  }
  return ceilings;
}

}  // namespace bench
