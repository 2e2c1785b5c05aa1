// SPDX-License-Identifier: Apache-2.0
// A job on one rank: memory, inputs, calls. What came out is judged in job_verify.cc.
#include <algorithm>
#include <cstring>

#include "job.h"

namespace {

constexpr unsigned char kJunk = 0x77;

// Makes up rows of some bytes and brings them to `to`, a few at a time.
template <typename MakeRow>
void upload_rows(hepBackend_t backend, int64_t num_rows, int64_t row_bytes, void* to,
                 MakeRow make_row) {
  std::vector<unsigned char> rows;
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, num_rows - first);
    rows.resize(count * row_bytes);
    for (int64_t i = 0; i < count; ++i) make_row(first + i, &rows[i * row_bytes]);
    harness::upload(backend, static_cast<char*>(to) + first * row_bytes, rows.data(), rows.size());
  }
}

std::vector<float> make_floats(const RowWeights& source, int rank, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = source.at(rank, i);
  return values;
}

// What pointers to rows and to arrays must be aligned to.
constexpr size_t kRowAlignment = 16;
constexpr size_t kArrayAlignment = 4;

// Inputs in registered memory begin at multiples.
constexpr size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Points nowhere, and is aligned to nothing.
template <typename T>
void spoil(T*& pointer) {
  pointer = reinterpret_cast<T*>(uintptr_t{13});
}

size_t index_alignment(hepIndexType_t type) {
  return type == hepIndexMap ? 1 : type == hepIndexInt64 ? sizeof(int64_t) : sizeof(int32_t);
}

// Maps begin at an odd byte, as they may.
size_t first_index_byte(const Job& job, const Update& update, int rank) {
  const hepIndexType_t type = update.index_types[rank];
  const bool is_empty = update.expected->batch(rank).indices.empty();
  return !is_empty && (job.least_alignments || type == hepIndexMap) ? index_alignment(type) : 0;
}

int64_t index_bytes(const Update& update, int rank) {
  const size_t ids = update.expected->batch(rank).indices.size();
  switch (update.index_types[rank]) {
    case hepIndexMap: return update.maps[rank].size();
    case hepIndexInt64: return ids * sizeof(int64_t);
    default: return ids * sizeof(int32_t);
  }
}

}  // namespace

JobRun::JobRun(const Job& job, Rank& rank)
    : job_(&job), rank_(rank), backend_(harness::world().backend()) {
  for (const RoutingPlace& place : job.routings) create_routing(place);
  register_memory();
  allocate();
  load(job);
}

JobRun::~JobRun() {
  const auto free = [this](const Input& input) {
    if (input.in_heap) succeeded(hepMemFree(rank_.comm, input.data), "hepMemFree");
  };
  for (const DispatchRun& run : dispatches_) free(run.x);
  for (const CombineRun& run : combines_) free(run.y);
  if (registers_) succeeded(hepCommDeregister(rank_.comm, registered_.data()), "hepCommDeregister");
}

// Memory that a routing brings holds anything beforehand.
void JobRun::create_routing(const RoutingPlace& place) {
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  config.alignment = place.alignment;
  config.mode = place.mode;
  config.lane = place.lane;
  config.max_tokens = place.max_tokens;
  config.max_top_k = place.max_top_k;
  if (place.own_memory) {
    succeeded(hepRoutingMemoryBytes(rank_.comm, &config, &config.memory_bytes),
              "hepRoutingMemoryBytes");
    routing_memory_.emplace_back(backend_, config.memory_bytes);
    routing_memory_.back().fill(kPoison);
    config.memory = routing_memory_.back().data();
  }
  routings_.push_back(std::make_unique<RoutingHandle>());
  succeeded(hepRoutingCreate(routings_.back()->out(), rank_.comm, &config), "hepRoutingCreate");
}

// Collective: takes and registers what the inputs of this rank need that are to lie there.
void JobRun::register_memory() {
  size_t bytes = 0;
  const auto add = [&](const std::vector<Memory>& memory, int64_t num_rows, int64_t row_bytes) {
    registers_ |= std::count(memory.begin(), memory.end(), kRegisteredMemory) > 0;
    if (memory[rank_.rank] == kRegisteredMemory) bytes += aligned(num_rows * row_bytes);
  };
  for (const Dispatch& dispatch : job_->dispatches)
    add(dispatch.x_memory, tokens_of(dispatch), row_bytes(dispatch, type_of_x(dispatch)));
  for (const Combine& combine : job_->combines)
    add(combine.y_memory, rows_of(combine), row_bytes(combine, type_of(combine)));
  if (!registers_) return;
  registered_ = harness::Buffer(backend_, bytes);
  succeeded(hepCommRegister(rank_.comm, registered_.data(), bytes), "hepCommRegister");
}

void JobRun::allocate() {
  const int local_experts = job_->num_experts / harness::world().num_ranks();
  for (const Update& update : job_->updates) {
    UpdateRun run;
    run.first_byte = first_index_byte(*job_, update, rank_.rank);
    run.indices = harness::Buffer(backend_, run.first_byte + index_bytes(update, rank_.rank));
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
    const reference::Routing& routing = expected(combine.update);
    const int64_t tokens = routing.batch(rank_.rank).num_tokens;
    const int64_t rows = rows_of(combine);
    allocate_input(rows * row_bytes(combine, type_of(combine)), combine.y_memory[rank_.rank],
                   &run.y);
    if (combine.mode == hepWeightsRow)
      run.row_weights = guarded(rows * sizeof(float), kArrayAlignment);
    run.out = guarded(tokens * row_bytes(combine, type_of(combine)), kRowAlignment);
    if (combine.has_gradients) {
      const int columns = combine.layout == hepLayoutFlat ? routing.top_k() : 1;
      run.row_gradients = guarded(rows * columns * sizeof(float), kArrayAlignment);
      const int width = combine.dense_gradients[rank_.rank] ? job_->num_experts : routing.top_k();
      run.gradients = guarded(tokens * width * sizeof(float), kArrayAlignment);
    }
    combines_.push_back(std::move(run));
  }
}

// Between canaries. It is aligned to `alignment`, and to no more if the job says so.
harness::GuardedBuffer JobRun::guarded(size_t bytes, size_t alignment) const {
  return harness::GuardedBuffer(backend_, bytes, job_->least_alignments ? alignment : 0);
}

void JobRun::allocate_input(size_t bytes, Memory memory, Input* input) {
  input->bytes = bytes;
  if (bytes == 0) return;
  if (memory == kRegisteredMemory) {
    input->data = registered_.as<char>() + registered_used_;
    registered_used_ += aligned(bytes);
    return;
  }
  if (memory == kHeapMemory)
    input->in_heap = succeeded(hepMemAlloc(rank_.comm, bytes, &input->data), "hepMemAlloc");
  if (input->in_heap) return;
  input->buffer = guarded(bytes, kRowAlignment);
  input->data = input->buffer.data();
}

void JobRun::allocate_dispatch(const Dispatch& dispatch, DispatchRun* run) {
  const reference::Routing& routing = expected(dispatch.update);
  const reference::Arrivals& arrivals = routing.at(rank_.rank);
  const int64_t tokens = tokens_of(dispatch);
  const int64_t capacity = dispatch.capacity[rank_.rank];
  const int64_t rows = arrivals.output_rows(dispatch.layout, capacity);
  const int columns = dispatch.layout == hepLayoutFlat ? routing.top_k() : 1;
  const auto array = [this](int64_t count) {
    return guarded(count * sizeof(int32_t), kArrayAlignment);
  };
  allocate_input(tokens * row_bytes(dispatch, type_of_x(dispatch)), dispatch.x_memory[rank_.rank],
                 &run->x);
  if (dispatch.has_scales) run->scales = guarded(tokens * job_->scale_bytes, 1);
  if (dispatch.has_weights) run->weights = array(dispatch.given_weights(rank_.rank).size());
  run->counters = harness::Buffer(backend_, sizeof(hepRowCounters_t));
  run->rows = guarded(rows * row_bytes(dispatch, type_of(dispatch)), kRowAlignment);
  if (dispatch.delivers_scales()) {
    const int64_t experts = dispatch.layout == hepLayoutExpertPadded ? arrivals.num_experts() : 1;
    run->row_scales =
        guarded(dispatch.scale_element_bytes == 0 ? rows * job_->scale_bytes
                : rows == 0                       ? 0
                            : experts * job_->scale_bytes * dispatch.scale_stride(rank_.rank),
                std::max(dispatch.scale_element_bytes, 1));
  }
  if (dispatch.extras) {
    run->row_weights = array(rows * columns);
    run->row_sources = array(rows);
    run->row_tokens = array(rows);
    if (dispatch.layout == hepLayoutFlat) run->row_experts = array(rows * columns);
    if (dispatch.layout != hepLayoutFlat) run->expert_rows = array(arrivals.num_experts());
    if (dispatch.layout == hepLayoutExpertMajor)
      run->group_sizes = guarded(arrivals.num_experts() * sizeof(int64_t), sizeof(int64_t));
    run->row_counters = guarded(sizeof(hepRowCounters_t), sizeof(int64_t));
  }
  run->gather = array(dispatch.gather_capacity[rank_.rank]);
}

void JobRun::load(const Job& job) {
  job_ = &job;
  for (size_t i = 0; i < updates_.size(); ++i) {
    const std::vector<int64_t>& ids = expected(i).batch(rank_.rank).indices;
    harness::Buffer& to = updates_[i].indices;
    const size_t first = updates_[i].first_byte;
    const hepIndexType_t index_type = job.updates[i].index_types[rank_.rank];
    if (index_type == hepIndexMap) {
      const std::vector<unsigned char>& map = job.updates[i].maps[rank_.rank];
      to.upload(map.data(), map.size(), first);
    } else if (index_type == hepIndexInt64) {
      to.upload(ids.data(), to.bytes() - first, first);
    } else {
      const std::vector<int32_t> narrow(ids.begin(), ids.end());
      to.upload(narrow.data(), to.bytes() - first, first);
    }
  }
  for (size_t i = 0; i < dispatches_.size(); ++i) load_dispatch(job.dispatches[i], &dispatches_[i]);
  for (size_t i = 0; i < combines_.size(); ++i) load_combine(job.combines[i], &combines_[i]);
}

void JobRun::load_dispatch(const Dispatch& dispatch, DispatchRun* run) {
  const int rank = rank_.rank;
  const int64_t tokens = expected(dispatch.update).batch(rank).num_tokens;
  const int32_t type = type_of_x(dispatch);
  upload_rows(backend_, tokens, row_bytes(dispatch, type), run->x.data,
              [&](int64_t token, unsigned char* to) {
                dispatch.x.row(rank, token, type, hidden_of(dispatch), to);
              });
  if (dispatch.has_scales)
    upload_rows(backend_, tokens, job_->scale_bytes, run->scales.data(),
                [&](int64_t token, unsigned char* to) {
                  make_bytes(dispatch.scales_seed, rank, token, job_->scale_bytes, to);
                });
  run->weights.upload(dispatch.given_weights(rank).data(), run->weights.bytes());
  for (harness::GuardedBuffer* output : run->outputs()) output->fill(kPoison);
}

void JobRun::load_combine(const Combine& combine, CombineRun* run) {
  const int32_t type = type_of(combine);
  upload_rows(backend_, run->y.bytes / row_bytes(combine, type), row_bytes(combine, type),
              run->y.data, [&](int64_t row, unsigned char* to) {
                combine.y.row(rank_.rank, row, type, hidden_of(combine), to);
              });
  const auto load = [&](const RowWeights& source, harness::GuardedBuffer* to) {
    const std::vector<float> values = make_floats(source, rank_.rank, to->bytes() / sizeof(float));
    to->upload(values.data(), to->bytes());
  };
  load(combine.row_weights, &run->row_weights);
  load(combine.row_gradients, &run->row_gradients);
  for (harness::GuardedBuffer* output : run->outputs()) output->fill(kPoison);
}

bool JobRun::succeeded(hepResult_t result, const char* call) {
  if (result == hepSuccess) return true;
  ADD_FAILURE() << job_->name << ": rank " << rank_.rank << ": " << call << ": "
                << hepGetErrorString(result) << ": " << hepGetLastError();
  return false;
}

bool JobRun::issue() {
  for (const Call& call : job_->order)
    if (!issue(call)) return false;
  return true;
}

bool JobRun::issue(const Call& call) {
  const int index = call.index;
  switch (call.operation) {
    case hepOperationRouting: return issue_update(job_->updates[index], &updates_[index]);
    case hepOperationDispatch:
      return issue_dispatch(job_->dispatches[index], call.step, &dispatches_[index]);
    default: return issue_combine(job_->combines[index], call.step, &combines_[index]);
  }
}

// CUDA does not promise that a kernel starts while others run, and on an H200 it does not if they
// have work queued behind them. Where ranks share a device, all have enqueued an operation before
// any of them enqueues more.
void JobRun::launched() {
  if (harness::world().shares_devices()) rank_.barrier();
}

// After each call its inputs are overwritten in stream order: they may be reused by then.
bool JobRun::issue_update(const Update& update, UpdateRun* run) {
  harness::Stream& stream = rank_.stream;
  const hepRouting_t routing = this->routing(update.routing);
  const hepUpdate_t args = update_args(update, *run);
  if (!succeeded(hepRoutingUpdate(routing, &args, stream.get()), "hepRoutingUpdate")) return false;
  launched();
  return follow_update(update, run);
}

bool JobRun::follow_update(const Update& update, UpdateRun* run) {
  harness::Stream& stream = rank_.stream;
  const hepRouting_t routing = this->routing(update.routing);
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

hepUpdate_t JobRun::update_args(const Update& update, const UpdateRun& run) const {
  hepUpdate_t args = harness::make_update(run.ids(), update.expected->batch(rank_.rank).num_tokens,
                                          update.expected->top_k(), update.index_types[rank_.rank]);
  if (job_->wild_pointers && args.num_tokens == 0) spoil(args.indices);
  return args;
}

void JobRun::spoil_unused(const Dispatch& dispatch, hepDispatchArgs_t* args) const {
  if (tokens_of(dispatch) == 0) {
    spoil(args->x);
    spoil(args->weights);
    spoil(args->dense_weights);
    if (dispatch.has_scales) spoil(args->scales);
  }
  if (args->capacity > 0) return;
  spoil(args->rows);
  spoil(args->row_weights);
  spoil(args->row_sources);
  spoil(args->row_tokens);
  if (dispatch.delivers_scales()) spoil(args->row_scales);
  if (dispatch.layout != hepLayoutFlat) return;
  spoil(args->row_experts);
  if (args->gather_capacity == 0) spoil(args->gather);
}

void JobRun::spoil_unused(const Combine& combine, hepCombineArgs_t* args) const {
  if (expected(combine.update).batch(rank_.rank).num_tokens == 0) {
    spoil(args->out);
    spoil(args->gradients);
    spoil(args->dense_gradients);
  }
  if (args->capacity > 0) return;
  spoil(args->y);
  spoil(args->row_weights);
  spoil(args->row_gradients);
}

hepDispatchArgs_t JobRun::dispatch_args(const Dispatch& dispatch, const DispatchRun& run) const {
  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  args.layout = dispatch.layout;
  args.x = run.x.data;
  (dispatch.gives_dense_weights(rank_.rank) ? args.dense_weights : args.weights) =
      run.weights.as<float>();
  args.rows = run.rows.data();
  args.capacity = dispatch.capacity[rank_.rank];
  args.row_weights = run.row_weights.as<float>();
  args.row_experts = run.row_experts.as<int32_t>();
  args.row_sources = run.row_sources.as<int32_t>();
  args.row_tokens = run.row_tokens.as<int32_t>();
  args.type = dispatch.type;
  args.quantize = dispatch.quantize;
  args.hidden = dispatch.hidden;
  args.overflow = dispatch.overflow;
  args.scales = run.scales.data();
  args.row_scales = run.row_scales.data();
  if (args.row_scales != nullptr && dispatch.scale_element_bytes != 0) {
    args.scale_element_bytes = dispatch.scale_element_bytes;
    args.row_scales_stride = dispatch.scale_stride(rank_.rank);
  }
  args.expert_rows = run.expert_rows.as<int32_t>();
  args.group_sizes = run.group_sizes.as<int64_t>();
  args.row_counters = run.row_counters.as<hepRowCounters_t>();
  args.gather = run.gather.as<int32_t>();
  args.gather_capacity = dispatch.gather_capacity[rank_.rank];
  if (job_->wild_pointers) spoil_unused(dispatch, &args);
  return args;
}

bool JobRun::issue_dispatch(const Dispatch& dispatch, Step step, DispatchRun* run) {
  harness::Stream& stream = rank_.stream;
  const Update& update = job_->updates[dispatch.update];
  const hepRouting_t routing = this->routing(update.routing);
  const hepUpdate_t choice = update_args(update, updates_[dispatch.update]);
  hepDispatchArgs_t args = dispatch_args(dispatch, *run);
  if (dispatch.does_update) args.update = &choice;
  const hepResult_t result = step == Step::kReceive ? hepDispatchReceive(routing, stream.get())
                             : step == Step::kSend  ? hepDispatchSend(routing, &args, stream.get())
                                                    : hepDispatch(routing, &args, stream.get());
  if (!succeeded(result, "a dispatch")) return false;
  launched();
  if (step == Step::kSend) return true;
  stream.fill(run->x.data, kJunk, run->x.bytes);
  stream.fill(run->scales.data(), kJunk, run->scales.bytes());
  stream.fill(run->weights.data(), kJunk, run->weights.bytes());

  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  if (!succeeded(hepRoutingGetView(routing, &view), "hepRoutingGetView")) return false;
  stream.copy(run->counters.data(), view.row_counters, sizeof(hepRowCounters_t));
  return !dispatch.does_update || follow_update(update, &updates_[dispatch.update]);
}

hepCombineArgs_t JobRun::combine_args(const Combine& combine, const CombineRun& run) const {
  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  args.layout = combine.layout;
  args.weight_mode = combine.mode;
  args.y = run.y.data;
  args.capacity = combine.capacity[rank_.rank];
  args.row_weights = run.row_weights.as<float>();
  args.type = combine.type;
  args.partial_type = combine.partial_type;
  args.hidden = combine.hidden;
  args.row_gradients = run.row_gradients.as<float>();
  (combine.dense_gradients[rank_.rank] ? args.dense_gradients : args.gradients) =
      run.gradients.as<float>();
  args.out = run.out.data();
  if (job_->wild_pointers) spoil_unused(combine, &args);
  return args;
}

bool JobRun::issue_combine(const Combine& combine, Step step, CombineRun* run) {
  harness::Stream& stream = rank_.stream;
  const hepRouting_t routing = this->routing(job_->updates[combine.update].routing);
  const hepCombineArgs_t args = combine_args(combine, *run);
  const hepResult_t result = step == Step::kReceive ? hepCombineReceive(routing, stream.get())
                             : step == Step::kSend  ? hepCombineSend(routing, &args, stream.get())
                                                    : hepCombine(routing, &args, stream.get());
  if (!succeeded(result, "a combine")) return false;
  launched();
  if (step == Step::kSend) return true;
  stream.fill(run->y.data, kJunk, run->y.bytes);
  stream.fill(run->row_weights.data(), kJunk, run->row_weights.bytes());
  stream.fill(run->row_gradients.data(), kJunk, run->row_gradients.bytes());
  return true;
}

void JobRun::complete() {
  rank_.barrier();
  ASSERT_TRUE(issue());
  rank_.stream.synchronize();
  rank_.barrier();
  verify();
}

void run_job(const hepConfig_t& config, const Job& job) {
  run_ranks(config, [&](Rank& self) { JobRun(job, self).complete(); });
}
