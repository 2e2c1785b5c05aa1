// SPDX-License-Identifier: Apache-2.0
// A job on one rank: memory, inputs, calls. What came out is judged in job_verify.cc.
#include <algorithm>
#include <cstring>

#include "job.h"

namespace {

constexpr unsigned char kJunk = 0x77;

// Makes up rows and brings them to `to`, a few at a time.
void upload_rows(hepBackend_t backend, const Payload& payload, int rank, int64_t num_rows,
                 int hidden, void* to) {
  std::vector<uint16_t> rows;
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, num_rows - first);
    rows.resize(count * hidden);
    for (int64_t i = 0; i < count; ++i) payload.row(rank, first + i, hidden, &rows[i * hidden]);
    harness::upload(backend, static_cast<uint16_t*>(to) + first * hidden, rows.data(),
                    rows.size() * sizeof(uint16_t));
  }
}

}  // namespace

JobRun::JobRun(const Job& job, Rank& rank)
    : job_(&job), rank_(rank), backend_(harness::world().backend()) {
  for (const int alignment : job.alignments) {
    hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.alignment = alignment;
    routings_.push_back(std::make_unique<RoutingHandle>());
    succeeded(hepRoutingCreate(routings_.back()->out(), rank.comm, &config), "hepRoutingCreate");
  }
  allocate();
  load(job);
}

JobRun::~JobRun() {
  const auto free = [this](const Input& input) {
    if (input.in_heap) succeeded(hepMemFree(rank_.comm, input.data), "hepMemFree");
  };
  for (const DispatchRun& run : dispatches_) free(run.x);
  for (const CombineRun& run : combines_) free(run.y);
}

void JobRun::allocate() {
  const int local_experts = job_->num_experts / harness::world().num_ranks();
  for (const Update& update : job_->updates) {
    UpdateRun run;
    const size_t ids = update.expected->batch(rank_.rank).indices.size();
    run.indices = harness::Buffer(backend_, ids * (update.index_type == hepIndexInt64 ? 8 : 4));
    run.tokens_per_expert = harness::Buffer(backend_, local_experts * sizeof(int32_t));
    run.expert_offsets = harness::Buffer(backend_, (local_experts + 1) * sizeof(int32_t));
    run.totals = harness::Buffer(backend_, 2 * sizeof(int64_t));
    updates_.push_back(std::move(run));
  }
  dispatches_.resize(job_->dispatches.size());
  for (size_t i = 0; i < dispatches_.size(); ++i)
    allocate_dispatch(job_->dispatches[i], &dispatches_[i]);
  for (const Combine& combine : job_->combines) {
    CombineRun run;
    const int64_t capacity = combine.capacity[rank_.rank];
    allocate_input(capacity * job_->hidden * sizeof(uint16_t), combine.y_in_heap[rank_.rank],
                   &run.y);
    if (combine.mode == hepWeightsRow)
      run.row_weights = harness::Buffer(backend_, capacity * sizeof(float));
    run.out =
        harness::GuardedBuffer(backend_, expected(combine.update).batch(rank_.rank).num_tokens *
                                             job_->hidden * sizeof(uint16_t));
    combines_.push_back(std::move(run));
  }
}

void JobRun::allocate_input(size_t bytes, bool in_heap, Input* input) {
  input->bytes = bytes;
  if (in_heap && bytes > 0)
    input->in_heap = succeeded(hepMemAlloc(rank_.comm, bytes, &input->data), "hepMemAlloc");
  if (input->in_heap) return;
  input->buffer = harness::Buffer(backend_, bytes);
  input->data = input->buffer.data();
}

void JobRun::allocate_dispatch(const Dispatch& dispatch, DispatchRun* run) {
  const reference::Routing& routing = expected(dispatch.update);
  const int64_t tokens = routing.batch(rank_.rank).num_tokens;
  const int64_t capacity = dispatch.capacity[rank_.rank];
  const int64_t columns = dispatch.layout == hepLayoutFlat ? routing.top_k() : 1;

  allocate_input(tokens * job_->hidden * sizeof(uint16_t), dispatch.x_in_heap[rank_.rank], &run->x);
  if (dispatch.has_weights)
    run->weights = harness::Buffer(backend_, tokens * routing.top_k() * sizeof(float));
  run->counters = harness::Buffer(backend_, sizeof(hepRowCounters_t));
  run->rows = harness::GuardedBuffer(backend_, capacity * job_->hidden * sizeof(uint16_t));
  if (dispatch.extras) {
    run->row_weights = harness::GuardedBuffer(backend_, capacity * columns * sizeof(float));
    run->row_sources = harness::GuardedBuffer(backend_, capacity * sizeof(int32_t));
    run->row_tokens = harness::GuardedBuffer(backend_, capacity * sizeof(int32_t));
    if (dispatch.layout == hepLayoutFlat)
      run->row_experts = harness::GuardedBuffer(backend_, capacity * columns * sizeof(int32_t));
  }
  run->gather =
      harness::GuardedBuffer(backend_, dispatch.gather_capacity[rank_.rank] * sizeof(int32_t));
}

void JobRun::load(const Job& job) {
  job_ = &job;
  for (size_t i = 0; i < updates_.size(); ++i) {
    const std::vector<int64_t>& ids = expected(i).batch(rank_.rank).indices;
    if (job.updates[i].index_type == hepIndexInt64) {
      updates_[i].indices.upload(ids.data(), ids.size() * sizeof(int64_t));
    } else {
      const std::vector<int32_t> narrow(ids.begin(), ids.end());
      updates_[i].indices.upload(narrow.data(), narrow.size() * sizeof(int32_t));
    }
  }
  for (size_t i = 0; i < dispatches_.size(); ++i) {
    const Dispatch& dispatch = job.dispatches[i];
    DispatchRun& run = dispatches_[i];
    upload_rows(backend_, dispatch.x, rank_.rank,
                expected(dispatch.update).batch(rank_.rank).num_tokens, job.hidden, run.x.data);
    run.weights.upload(dispatch.weights[rank_.rank].data(), run.weights.bytes());
    for (harness::GuardedBuffer* output : {&run.rows, &run.row_weights, &run.row_experts,
                                           &run.row_sources, &run.row_tokens, &run.gather})
      output->fill(kPoison);
  }
  for (size_t i = 0; i < combines_.size(); ++i) {
    const Combine& combine = job.combines[i];
    CombineRun& run = combines_[i];
    upload_rows(backend_, combine.y, rank_.rank, combine.capacity[rank_.rank], job.hidden,
                run.y.data);
    std::vector<float> weights(run.row_weights.bytes() / sizeof(float));
    for (size_t place = 0; place < weights.size(); ++place)
      weights[place] = combine.row_weights.at(rank_.rank, place);
    run.row_weights.upload(weights.data(), run.row_weights.bytes());
    run.out.fill(kPoison);
  }
}

bool JobRun::succeeded(hepResult_t result, const char* call) {
  if (result == hepSuccess) return true;
  ADD_FAILURE() << job_->name << ": rank " << rank_.rank << ": " << call << ": "
                << hepGetErrorString(result) << ": " << hepGetLastError();
  return false;
}

bool JobRun::issue() {
  for (const auto& [operation, index] : job_->order) {
    const bool issued = operation == hepOperationRouting
                            ? issue_update(job_->updates[index], &updates_[index])
                        : operation == hepOperationDispatch
                            ? issue_dispatch(job_->dispatches[index], &dispatches_[index])
                            : issue_combine(job_->combines[index], &combines_[index]);
    if (!issued) return false;
  }
  return true;
}

// CUDA does not promise that a kernel starts while others run, and on an H200 it does not if they have
// work queued behind them. Where ranks share a device, all have enqueued an operation before any of
// them enqueues more.
void JobRun::launched() {
  if (harness::world().shares_devices()) rank_.barrier();
}

// After each call its inputs are overwritten in stream order: they may be reused by then.
bool JobRun::issue_update(const Update& update, UpdateRun* run) {
  harness::Stream& stream = rank_.stream;
  const hepRouting_t routing = this->routing(update.routing);
  const hepResult_t result =
      hepRoutingUpdate(routing, run->indices.data(), update.expected->batch(rank_.rank).num_tokens,
                       update.expected->top_k(), update.index_type, stream.get());
  if (!succeeded(result, "hepRoutingUpdate")) return false;
  launched();
  stream.fill(run->indices.data(), kJunk, run->indices.bytes());

  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  if (!succeeded(hepRoutingGetView(routing, &view), "hepRoutingGetView")) return false;
  stream.copy(run->tokens_per_expert.data(), view.tokens_per_expert,
              run->tokens_per_expert.bytes());
  stream.copy(run->expert_offsets.data(), view.expert_offsets, run->expert_offsets.bytes());
  stream.copy(run->totals.as<int64_t>(), view.num_flat_rows, sizeof(int64_t));
  stream.copy(run->totals.as<int64_t>() + 1, view.num_expert_rows, sizeof(int64_t));
  if (update.query) expect_counts(update);
  return true;
}

bool JobRun::issue_dispatch(const Dispatch& dispatch, DispatchRun* run) {
  harness::Stream& stream = rank_.stream;
  const hepRouting_t routing = this->routing(job_->updates[dispatch.update].routing);
  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  args.layout = dispatch.layout;
  args.x = run->x.data;
  args.weights = run->weights.as<float>();
  args.rows = run->rows.data();
  args.capacity = dispatch.capacity[rank_.rank];
  args.row_weights = run->row_weights.as<float>();
  args.row_experts = run->row_experts.as<int32_t>();
  args.row_sources = run->row_sources.as<int32_t>();
  args.row_tokens = run->row_tokens.as<int32_t>();
  args.gather = run->gather.as<int32_t>();
  args.gather_capacity = dispatch.gather_capacity[rank_.rank];
  if (!succeeded(hepDispatch(routing, &args, stream.get()), "hepDispatch")) return false;
  launched();
  stream.fill(run->x.data, kJunk, run->x.bytes);
  stream.fill(run->weights.data(), kJunk, run->weights.bytes());

  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  if (!succeeded(hepRoutingGetView(routing, &view), "hepRoutingGetView")) return false;
  stream.copy(run->counters.data(), view.row_counters, sizeof(hepRowCounters_t));
  return true;
}

bool JobRun::issue_combine(const Combine& combine, CombineRun* run) {
  harness::Stream& stream = rank_.stream;
  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  args.layout = combine.layout;
  args.weight_mode = combine.mode;
  args.y = run->y.data;
  args.capacity = combine.capacity[rank_.rank];
  args.row_weights = run->row_weights.as<float>();
  args.out = run->out.data();
  const hepRouting_t routing = this->routing(job_->updates[combine.update].routing);
  if (!succeeded(hepCombine(routing, &args, stream.get()), "hepCombine")) return false;
  launched();
  stream.fill(run->y.data, kJunk, run->y.bytes);
  stream.fill(run->row_weights.data(), kJunk, run->row_weights.bytes());
  return true;
}

std::vector<unsigned char> JobRun::outputs() const {
  std::vector<unsigned char> all;
  const auto append = [&all](const harness::GuardedBuffer& buffer) {
    all.resize(all.size() + buffer.bytes());
    buffer.download(all.data() + all.size() - buffer.bytes(), buffer.bytes());
  };
  for (const DispatchRun& run : dispatches_) {
    for (const harness::GuardedBuffer* output : {&run.rows, &run.row_weights, &run.row_experts,
                                                 &run.row_sources, &run.row_tokens, &run.gather})
      append(*output);
  }
  for (const CombineRun& run : combines_) append(run.out);
  return all;
}
