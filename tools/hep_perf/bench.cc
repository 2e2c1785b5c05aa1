// SPDX-License-Identifier: Apache-2.0
#include "bench.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "measure.h"
#include "require.h"

namespace perf {
namespace {

constexpr unsigned char kPoison = 0xa5;
constexpr int64_t kUploadBytes = int64_t{16} << 20;

harness::Buffer poisoned(hepBackend_t backend, int64_t bytes) {
  harness::Buffer buffer(backend, bytes);
  buffer.fill(kPoison);
  return buffer;
}

const char* weight_mode_name(hepWeightMode_t mode) {
  return mode == hepWeightsNone ? "none" : "dispatched";
}

}  // namespace

struct Bench::Handles {
  Handles() = default;
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  ~Handles() {
    hepRoutingDestroy(routing);
    hepCommDestroy(comm);
  }
  hepComm_t comm = nullptr;
  hepRouting_t routing = nullptr;
  int sm_budget = 0;
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
};

// Every slot of a matrix of this rank, in memory of the library's heap or in other memory.
class Bench::Input {
 public:
  Input(const Job& job, hepComm_t comm, Memory memory, Matrix matrix, int rank, const Slots& slots)
      : comm_(comm), slots_(slots), row_bytes_(job.row_bytes()) {
    const int64_t bytes = slots.total_rows() * row_bytes_;
    if (bytes == 0) return;
    if (memory == Memory::kHeap) {
      require(hepMemAlloc(comm, bytes, &heap_), "hepMemAlloc");
    } else {
      buffer_ = harness::Buffer(job.backend, bytes);
    }
    fill(job, matrix, rank);
  }
  ~Input() { hepMemFree(comm_, heap_); }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  void* of_call(int index) const {
    return base() == nullptr ? nullptr : base() + slots_.first_row(index) * row_bytes_;
  }

 private:
  char* base() const { return heap_ ? static_cast<char*>(heap_) : buffer_.as<char>(); }

  void fill(const Job& job, Matrix matrix, int rank) {
    const int64_t rows = slots_.total_rows();
    const int64_t rows_at_once = std::max<int64_t>(1, kUploadBytes / row_bytes_);
    std::vector<char> staging(std::min(rows, rows_at_once) * row_bytes_);
    for (int64_t first = 0; first < rows; first += rows_at_once) {
      const int64_t count = std::min(rows_at_once, rows - first);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(&staging[i * row_bytes_], job.workload.row(matrix, rank, first + i),
                    row_bytes_);
      }
      harness::upload(job.backend, base() + first * row_bytes_, staging.data(), count * row_bytes_);
    }
  }

  hepComm_t comm_;
  Slots slots_;
  int64_t row_bytes_;
  void* heap_ = nullptr;
  harness::Buffer buffer_;
};

Bench::Bench(harness::World& world, const Job& job, int rank, Report* report)
    : world_(world),
      job_(job),
      rank_(rank),
      report_(report),
      stream_(job.backend),
      checker_(job, rank) {}

void Bench::run() {
  for (const int sms : job_.options.sms) run_budget(sms);
}

void Bench::run_budget(int sms) {
  Handles handles;
  handles.sm_budget = sms;
  require(world_.create_comm(rank_, job_.config(sms), &handles.comm), "hepCommInit");
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  config.alignment = job_.options.alignment;
  require(hepRoutingCreate(&handles.routing, handles.comm, &config), "hepRoutingCreate");
  require(hepCommLimits(handles.comm, &handles.limits), "hepCommLimits");

  run_routing(handles);
  for (const hepLayout_t layout : job_.options.layouts) {
    for (const Memory memory : job_.options.memories) run_dispatch(handles, layout, memory);
    for (const Memory memory : job_.options.memories) run_combine(handles, layout, memory);
  }
  // Nobody frees what another rank may still read.
  if (!world_.barrier(rank_)) throw std::runtime_error("another rank failed");
}

void Bench::run_routing(const Handles& handles) {
  harness::Buffer indices[2];
  for (int set = 0; set < 2; ++set) {
    const std::vector<int32_t>& values = job_.workload.indices(set, rank_);
    indices[set] = harness::Buffer(job_.backend, values.size() * sizeof(int32_t));
    indices[set].upload(values.data(), indices[set].bytes());
  }
  // The sets alternate so that every update has something to do; the last one is set 0.
  const int last = num_calls(job_.options, job_.backend) - 1;
  const auto call = [&](int index) {
    require(hepRoutingUpdate(handles.routing, indices[(last - index) % 2].data(),
                             job_.options.tokens, job_.options.top_k, hepIndexInt32, stream_.get()),
            "hepRoutingUpdate");
  };
  const Row row = {"routing", "-",   "-", "-", handles.sm_budget, handles.limits.routing_blocks,
                   Timing(),  false, -1};
  run_case(handles, row, call, [&] { return checker_.routing(handles.routing, stream_.get()); });
}

void Bench::run_dispatch(const Handles& handles, hepLayout_t layout, Memory memory) {
  const int64_t num_rows = job_.routing.at(rank_).num_rows(layout);
  const Slots token = token_slots(job_);
  const Slots output = output_slots(job_, num_rows, token);
  const Input x(job_, handles.comm, memory, Matrix::kTokens, rank_, token);
  const harness::Buffer rows = poisoned(job_.backend, output.total_rows() * job_.row_bytes());

  const bool flat = layout == hepLayoutFlat;
  const bool weighted = job_.options.weights;
  harness::Buffer weights, row_weights, row_experts;
  if (weighted) {
    const std::vector<float>& values = job_.weights[rank_];
    weights = harness::Buffer(job_.backend, values.size() * sizeof(float));
    weights.upload(values.data(), weights.bytes());
    const int64_t columns = flat ? job_.options.top_k : 1;
    row_weights = poisoned(job_.backend, num_rows * columns * sizeof(float));
    if (flat) row_experts = poisoned(job_.backend, num_rows * columns * sizeof(int32_t));
  }

  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  args.layout = layout;
  args.weights = weights.as<float>();
  args.capacity = num_rows;
  args.row_weights = row_weights.as<float>();
  args.row_experts = row_experts.as<int32_t>();
  const auto rows_of_call = [&](int index) {
    return num_rows == 0 ? nullptr
                         : rows.as<uint16_t>() + output.first_row(index) * job_.options.hidden;
  };
  const auto call = [&](int index) {
    args.x = x.of_call(index);
    args.rows = rows_of_call(index);
    require(hepDispatch(handles.routing, &args, stream_.get()), "hepDispatch");
  };
  const int last = num_calls(job_.options, job_.backend) - 1;
  const Row row = {"dispatch",
                   layout_name(layout),
                   memory_name(memory),
                   weighted ? "carried" : "none",
                   handles.sm_budget,
                   handles.limits.dispatch_blocks,
                   Timing(),
                   true,
                   -1};
  run_case(handles, row, call, [&] {
    return checker_.dispatch(layout, last,
                             {rows_of_call(last), args.row_weights, args.row_experts});
  });
}

void Bench::run_combine(const Handles& handles, hepLayout_t layout, Memory memory) {
  const Slots expert = expert_slots(job_, layout, rank_);
  const Slots output = output_slots(job_, job_.options.tokens, expert);
  const Input y(job_, handles.comm, memory, Matrix::kExpertOutputs, rank_, expert);
  const harness::Buffer out = poisoned(job_.backend, output.total_rows() * job_.row_bytes());

  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  args.layout = layout;
  args.weight_mode = job_.weight_mode(layout);
  args.capacity = expert.rows;
  const auto out_of_call = [&](int index) {
    return out.as<uint16_t>() + output.first_row(index) * job_.options.hidden;
  };
  const auto call = [&](int index) {
    args.y = y.of_call(index);
    args.out = out_of_call(index);
    require(hepCombine(handles.routing, &args, stream_.get()), "hepCombine");
  };
  const int last = num_calls(job_.options, job_.backend) - 1;
  const Row row = {"combine",
                   layout_name(layout),
                   memory_name(memory),
                   weight_mode_name(job_.weight_mode(layout)),
                   handles.sm_budget,
                   handles.limits.combine_blocks,
                   Timing(),
                   true,
                   -1};
  run_case(handles, row, call, [&] { return checker_.combine(layout, last, out_of_call(last)); });
}

void Bench::run_case(const Handles& handles, Row row, const std::function<void(int)>& call,
                     const std::function<int64_t()>& check) {
  const auto progress = [&](const std::string& what) {
    if (report_ == nullptr) return;
    const std::string sms = row.sm_budget == 0 ? "" : ", " + std::to_string(row.sm_budget) + " SMs";
    const std::string kind = row.moves_rows ? ", " + row.layout + ", " + row.memory : "";
    report_->progress(what + " " + row.operation + kind + sms);
  };
  progress("timing");
  row.timing = measure(world_, rank_, job_.options, stream_, call);
  hepResult_t error = hepSuccess;
  require(hepCommGetAsyncError(handles.comm, &error), "hepCommGetAsyncError");
  require(error, row.operation.c_str());
  if (job_.options.check) {
    progress("checking");
    const int64_t mine = check();
    std::vector<int64_t> wrong(world_.num_ranks());
    if (!world_.all_gather(rank_, &mine, wrong.data(), sizeof mine)) {
      throw std::runtime_error("another rank failed");
    }
    row.wrong = 0;
    for (const int64_t of_rank : wrong) row.wrong += of_rank;
  }
  if (report_ != nullptr) report_->add(row);
}

}  // namespace perf
