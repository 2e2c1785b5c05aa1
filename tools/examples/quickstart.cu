// SPDX-License-Identifier: Apache-2.0
// A Mixture-of-Experts layer on all GPUs of this machine. Each GPU is a rank with its own thread.
// Each expert doubles its tokens, and the weights of a token add up to one: it comes back doubled.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <hybridep.h>

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

constexpr int kTokens = 64, kHidden = 256, kExpertsOfRank = 4, kTopK = 2;

void fail(const char* call, const char* why) {
  std::fprintf(stderr, "%s\n  %s\n", call, why);
  std::exit(1);
}
#define CHECK(call) ((call) == hepSuccess ? void() : fail(#call, hepGetLastError()))
#define CUDA_CHECK(call) \
  ((call) == cudaSuccess ? void() : fail(#call, cudaGetErrorString(cudaGetLastError())))

__global__ void double_rows(__nv_bfloat16* rows, const int64_t* num_rows) {
  for (int64_t i = threadIdx.x; i < *num_rows * kHidden; i += blockDim.x) rows[i] += rows[i];
}

// Pointers are memory of the rank's GPU.
void moe_layer(int rank, int num_ranks, const hepUniqueId_t& id, const __nv_bfloat16* x,
               const int32_t* experts, const float* weights, __nv_bfloat16* out) {
  // README: begin
  // Once: describe the job and create a communicator. Every rank does this, on its own GPU.
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendCuda;
  config.max_tokens = kTokens;
  config.hidden = kHidden;
  config.num_experts = num_ranks * kExpertsOfRank;
  config.max_top_k = kTopK;
  hepComm_t comm;
  hepRouting_t routing;
  CHECK(hepCommInitRank(&comm, num_ranks, &id, rank, &config));
  CHECK(hepRoutingCreate(&routing, comm, nullptr));
  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  CHECK(hepRoutingGetView(routing, &view));
  const int64_t capacity = int64_t{num_ranks} * kTokens * kTopK;  // takes whatever comes
  __nv_bfloat16* rows;
  cudaStream_t stream;
  CUDA_CHECK(cudaMalloc(&rows, capacity * kHidden * sizeof *rows));
  CUDA_CHECK(cudaStreamCreate(&stream));

  // For each batch: calls that only enqueue. A CUDA graph can capture them.
  hepUpdate_t update = HEP_UPDATE_INITIALIZER;
  update.indices = experts;
  update.num_tokens = kTokens;
  update.top_k = kTopK;
  CHECK(hepRoutingUpdate(routing, &update, stream));
  hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
  dispatch.layout = hepLayoutExpertMajor;
  dispatch.x = x;
  dispatch.weights = weights;
  dispatch.rows = rows;
  dispatch.capacity = capacity;
  CHECK(hepDispatch(routing, &dispatch, stream));
  double_rows<<<1, 256, 0, stream>>>(rows, view.num_expert_rows);
  hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
  combine.layout = hepLayoutExpertMajor;
  combine.weight_mode = hepWeightsDispatched;
  combine.y = rows;
  combine.capacity = capacity;
  combine.out = out;
  CHECK(hepCombine(routing, &combine, stream));
  // README: end

  // Once: wait, look for errors of the device and of the peers, clean up.
  CUDA_CHECK(cudaStreamSynchronize(stream));
  hepResult_t failed;
  CHECK(hepCommGetAsyncError(comm, &failed));
  CHECK(failed);
  CHECK(hepRoutingDestroy(routing));
  CHECK(hepCommDestroy(comm));
  CUDA_CHECK(cudaStreamDestroy(stream));
  CUDA_CHECK(cudaFree(rows));
}

template <typename T>
T* on_device(const std::vector<T>& values) {
  T* copy;
  CUDA_CHECK(cudaMalloc(&copy, values.size() * sizeof(T)));
  CUDA_CHECK(cudaMemcpy(copy, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return copy;
}

void run_rank(int rank, int num_ranks, hepUniqueId_t id, int* wrong) {
  CUDA_CHECK(cudaSetDevice(rank));
  std::vector<__nv_bfloat16> x(kTokens * kHidden), out(x.size());
  std::vector<int32_t> experts(kTokens * kTopK);
  std::vector<float> weights(kTokens * kTopK);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i + rank) % 31);
  for (size_t i = 0; i < experts.size(); ++i) {
    experts[i] = (i * 3 + rank) % (num_ranks * kExpertsOfRank);
    weights[i] = i % 2 == 0 ? 0.25f : 0.75f;
  }
  __nv_bfloat16* const result = on_device(out);
  moe_layer(rank, num_ranks, id, on_device(x), on_device(experts), on_device(weights), result);
  CUDA_CHECK(cudaMemcpy(out.data(), result, out.size() * sizeof out[0], cudaMemcpyDeviceToHost));
  for (size_t i = 0; i < x.size(); ++i) *wrong += float(out[i]) != 2 * float(x[i]);
}

int main() {
  int num_ranks = 0;
  if (cudaGetDeviceCount(&num_ranks) != cudaSuccess || num_ranks == 0) {
    std::puts("This example needs a GPU, and CUDA finds none here.");
    return 77;  // Meson counts the test as skipped
  }
  hepUniqueId_t id;  // from one rank; the others get a copy of it by any means
  CHECK(hepGetUniqueId(&id));
  std::vector<int> wrong(num_ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank)
    threads.emplace_back(run_rank, rank, num_ranks, id, &wrong[rank]);
  for (std::thread& thread : threads) thread.join();
  const int all_wrong = std::accumulate(wrong.begin(), wrong.end(), 0);
  std::printf("%d ranks, %d tokens each: %d wrong values\n", num_ranks, kTokens, all_wrong);
  return all_wrong != 0;
}
