// SPDX-License-Identifier: Apache-2.0
// A job: operations that all ranks do on one communicator, decided beforehand, with the oracle's
// expectation; and its run on one rank.
#pragma once

#include <hybridep.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "harness/expected.h"
#include "oracle/reference.h"
#include "support.h"

constexpr unsigned char kPoison = 0xcb;  // fills outputs beforehand
constexpr int64_t kRowsAtOnce = 256;     // that pass through host memory

// Where an input of a rank lies.
enum Memory : char { kAnyMemory, kHeapMemory, kRegisteredMemory };

// Rows that every rank can make up for every other: numbers of a moderate size in the types that
// combine adds, any bytes in the others.
struct Payload {
  uint64_t seed = 0;
  bool special = false;  // zeros of both signs, infinities, NaN and denormals among them

  void row(int rank, int64_t index, int32_t type, int hidden, void* out) const;
};

// Any bytes that every rank can make up for every other.
void make_bytes(uint64_t seed, int rank, int64_t index, int count, unsigned char* out);

// A weight, or a gradient, for each row of y.
struct RowWeights {
  uint64_t seed = 0;
  float at(int rank, int64_t place) const;
};

// What a routing is created with.
struct RoutingPlace {
  int alignment;
  hepMode_t mode;
  int lane;
  bool own_memory = false;            // brings its memory
  int max_tokens = 0, max_top_k = 0;  // 0: the communicator's

  bool shares_lane(const RoutingPlace& other) const {
    return mode == other.mode && lane == other.lane;
  }
};

// Whether a dispatch or combine is called in halves. `between` calls on other lanes come between
// them, or fewer if a call on the same lane is due.
struct Halves {
  bool split = false;
  int between = 0;
};

// The words of the library's Step: what one call does of an operation.
enum class Step { kWhole, kSend, kReceive };

// One call of a job.
struct Call {
  hepOperation_t operation;
  int index;  // in its list
  Step step;
};

struct Update {
  int routing;
  std::vector<hepIndexType_t> index_types;  // by rank
  bool query;                               // asks for the counts at once
  std::shared_ptr<const reference::Routing> expected;
  std::vector<std::vector<unsigned char>> maps;  // by rank, for hepIndexMap
  int64_t max_selections;                        // of a token, those that were cut included
};

struct Dispatch {
  int update;
  bool does_update;  // in the same call
  Halves halves;
  hepLayout_t layout;
  Payload x;
  bool has_weights;
  std::vector<std::vector<float>> weights;        // [source], [T][K]
  std::vector<std::vector<float>> dense_weights;  // [source], [T][E] in their place, or empty
  bool extras;                                    // asks for every optional output of the layout
  hepDataType_t type;                             // of rows; 0: the communicator's
  hepQuantization_t quantize;                     // x is BF16
  bool has_scales;                                // forwards scales
  uint64_t scales_seed;
  int scale_element_bytes;  // of column-major scales; 0: row-major
  int stride_slack;    // pieces of 16 bytes that the columns are further apart than they need be
  bool no_row_scales;  // the tokens have scales, but this dispatch does not ask for them
  hepOverflow_t overflow;
  int hidden;  // 0: the communicator's

  // By rank.
  std::vector<Memory> x_memory;
  std::vector<int64_t> capacity, gather_capacity;  // gather_capacity 0: no gather

  bool gives_dense_weights(int rank) const { return !dense_weights[rank].empty(); }
  const std::vector<float>& given_weights(int rank) const {
    return gives_dense_weights(rank) ? dense_weights[rank] : weights[rank];
  }

  bool delivers_scales() const {
    return !no_row_scales && (has_scales || quantize != hepQuantizeNone);
  }

  // Elements between the columns of column-major scales.
  int64_t scale_stride(int rank) const {
    const int64_t unit = 16 / scale_element_bytes;
    return (std::max<int64_t>(1, (capacity[rank] + unit - 1) / unit) + stride_slack) * unit;
  }
};

struct Combine {
  int update;
  Halves halves;
  hepLayout_t layout;
  hepWeightMode_t mode;
  int weights_of;  // for hepWeightsDispatched: the dispatch that carried the weights
  Payload y;
  RowWeights row_weights;
  hepDataType_t type, partial_type;  // 0: the communicator's
  int hidden;                        // likewise
  bool has_gradients;
  std::vector<char> dense_gradients;  // by rank: [T][E] instead of [T][K]
  RowWeights row_gradients;

  // By rank.
  std::vector<Memory> y_memory;
  std::vector<int64_t> capacity;
};

struct Job {
  std::string name;
  // By rank, what hepCommGetAsyncError tells afterwards, the first before the second: tokens
  // selected experts that there are not, or too many; a dispatch with hepOverflowError dropped
  // rows.
  std::vector<char> misrouted, overflowed;
  int num_experts, hidden;
  hepDataType_t type = hepTypeBfloat16, combine_type = hepTypeBfloat16;  // the communicator's
  hepDataType_t partial_type = hepTypeBfloat16;
  int scale_bytes = 0;
  int domain_size = 0;            // 0: all ranks
  bool wild_pointers = false;     // where arrays have no elements
  bool least_alignments = false;  // of all pointers but those to the heap and to registered memory
  std::vector<RoutingPlace> routings;
  std::vector<Update> updates;
  std::vector<Dispatch> dispatches;
  std::vector<Combine> combines;
  std::vector<Call> order;

  const RoutingPlace& place_of(const Call& call) const {
    const int update = call.operation == hepOperationRouting    ? call.index
                       : call.operation == hepOperationDispatch ? dispatches[call.index].update
                                                                : combines[call.index].update;
    return routings[updates[update].routing];
  }
};

// How the tokens of an update choose.
struct RoutingPattern {
  int absent_percent = 10;  // -1
  int illegal_percent = 0;  // outside [-1, E)
  int hot_percent = 0;      // goes to the hot experts instead
  int first_hot = 0, num_hot = 1;
  bool distinct = false;   // no expert twice in a token, where E allows it
  int excess_percent = 0;  // maps: tokens that select more than top_k
  bool idle_tail = false;  // from some token on, on each rank, nothing is selected
};

// Puts jobs together; capacities are exact unless changed before finish().
class JobBuilder {
 public:
  JobBuilder(int num_ranks, int num_experts, int hidden, Random& random);
  JobBuilder(int num_ranks, const hepConfig_t& config, Random& random);

  int add_routing(int alignment, hepMode_t mode = hepModeThroughput, int lane = 0);
  int add_update(int routing, int top_k, const std::vector<hepIndexType_t>& index_types,
                 const std::vector<int64_t>& num_tokens,
                 const RoutingPattern& pattern = RoutingPattern());
  int add_update(int routing, int top_k, hepIndexType_t index_type,  // on all ranks
                 const std::vector<int64_t>& num_tokens,
                 const RoutingPattern& pattern = RoutingPattern());
  int add_dispatch(int update, hepLayout_t layout, bool has_weights);
  int add_combine(int update, hepLayout_t layout, hepWeightMode_t mode, int weights_of = -1);

  // Makes the weights that a rank gives to a dispatch dense.
  void give_dense_weights(int dispatch, int rank);

  // Moves a dispatch's update into its call, if nothing that uses it comes before.
  void fold_update(int dispatch);

  RoutingPlace& routing(int index) { return job_.routings[index]; }
  Update& update(int index) { return job_.updates[index]; }
  Dispatch& dispatch(int index) { return job_.dispatches[index]; }
  Combine& combine(int index) { return job_.combines[index]; }
  void align_least() { job_.least_alignments = true; }
  void use_wild_pointers() { job_.wild_pointers = true; }
  Job finish(const std::string& name);

 private:
  bool is_misrouted(const Update& update, int rank) const;
  std::vector<Call> split_calls() const;

  int num_ranks_;
  Random& random_;
  Job job_;
};

// A job on one rank. All memory is taken by the constructor, so that nothing allocates while
// operations are in flight; a rank may load() another job of the same sizes and run it again.
class JobRun {
 public:
  JobRun(const Job& job, Rank& rank);
  ~JobRun();
  JobRun(const JobRun&) = delete;
  JobRun& operator=(const JobRun&) = delete;

  void load(const Job& job);     // inputs; poisons the outputs
  bool issue();                  // enqueues all operations; false, and a failure, if one is refused
  bool issue(const Call& call);  // enqueues one
  void verify();                 // after the stream is done: every output byte, against the oracle
  void complete();               // all of it: enqueues, waits until all ranks are done, verifies
  std::vector<unsigned char> outputs();  // the bytes of all outputs

  // To run the same job again and again: keep_inputs() before it is issued, keep_outputs() when it
  // has been verified. Then, in stream order, restore() brings the inputs back and poisons the
  // outputs, and count_wrong() adds to *counter what differs from those that were kept.
  void keep_inputs();
  void keep_outputs();
  void restore();
  void count_wrong(uint64_t* counter);
  bool intact();  // nothing was written outside of the outputs

  hepRouting_t routing(int index) const { return routings_[index]->get(); }

 private:
  struct UpdateRun {
    harness::Buffer indices, tokens_per_expert, expert_offsets, totals;
    size_t first_byte = 0;  // of the indices in their buffer

    const void* ids() const {
      return indices.data() == nullptr ? nullptr : indices.as<char>() + first_byte;
    }
  };
  // Rows in any memory.
  struct Input {
    void* data = nullptr;
    size_t bytes = 0;
    bool in_heap = false;
    harness::GuardedBuffer buffer;
  };
  struct DispatchRun {
    Input x;
    harness::Buffer counters;
    harness::GuardedBuffer scales, weights;
    harness::GuardedBuffer rows, row_scales, row_weights, row_experts, row_sources, row_tokens,
        gather, expert_rows, group_sizes, row_counters;

    std::vector<harness::GuardedBuffer*> outputs() {
      return {&rows,       &row_scales, &row_weights, &row_experts, &row_sources,
              &row_tokens, &gather,     &expert_rows, &group_sizes, &row_counters};
    }
  };
  struct CombineRun {
    Input y;
    harness::GuardedBuffer row_weights, row_gradients;
    harness::GuardedBuffer out, gradients;

    std::vector<harness::GuardedBuffer*> outputs() { return {&out, &gradients}; }
  };

  void create_routing(const RoutingPlace& place);
  void allocate();
  harness::GuardedBuffer guarded(size_t bytes, size_t alignment) const;
  void register_memory();
  void allocate_input(size_t bytes, Memory memory, Input* input);
  void allocate_dispatch(const Dispatch& dispatch, DispatchRun* run);
  void load_dispatch(const Dispatch& dispatch, DispatchRun* run);
  void load_combine(const Combine& combine, CombineRun* run);
  bool issue_update(const Update& update, UpdateRun* run);
  bool issue_dispatch(const Dispatch& dispatch, Step step, DispatchRun* run);
  bool issue_combine(const Combine& combine, Step step, CombineRun* run);
  hepUpdate_t update_args(const Update& update, const UpdateRun& run) const;
  hepDispatchArgs_t dispatch_args(const Dispatch& dispatch, const DispatchRun& run) const;
  hepCombineArgs_t combine_args(const Combine& combine, const CombineRun& run) const;
  void spoil_unused(const Dispatch& dispatch, hepDispatchArgs_t* args) const;
  void spoil_unused(const Combine& combine, hepCombineArgs_t* args) const;
  bool follow_update(const Update& update, UpdateRun* run);
  void launched();
  struct Piece {
    void* data;
    size_t bytes;
  };
  std::vector<Piece> inputs();
  std::vector<harness::GuardedBuffer*> all_outputs();
  bool succeeded(hepResult_t result, const char* call);
  void expect_counts(const Update& update);
  void verify_update(const Update& update, const UpdateRun& run);
  void verify_dispatch(const Dispatch& dispatch, const DispatchRun& run);
  void verify_rows(const Dispatch& dispatch, const DispatchRun& run, const std::string& where);
  void verify_scales(const Dispatch& dispatch, const DispatchRun& run, const std::string& where);
  void verify_extras(const Dispatch& dispatch, const DispatchRun& run, const std::string& where);
  void verify_lists(const Dispatch& dispatch, const DispatchRun& run, const std::string& where);
  harness::ExpectedDispatch expected_dispatch(const Dispatch& dispatch) const;
  harness::ExpectedCombine::WeightOf combine_weights(const Combine& combine,
                                                     const reference::Combine& shape) const;
  void verify_combine(const Combine& combine, const CombineRun& run);

  int32_t type_of(const Dispatch& dispatch) const {
    return dispatch.type != hepTypeDefault ? dispatch.type : job_->type;
  }
  int32_t type_of_x(const Dispatch& dispatch) const {
    return dispatch.quantize != hepQuantizeNone ? hepTypeBfloat16 : type_of(dispatch);
  }
  int32_t type_of(const Combine& combine) const {
    return combine.type != hepTypeDefault ? combine.type : job_->combine_type;
  }
  template <typename Operation>
  int hidden_of(const Operation& operation) const {
    return operation.hidden != 0 ? operation.hidden : job_->hidden;
  }
  template <typename Operation>
  int64_t row_bytes(const Operation& operation, int32_t type) const {
    return int64_t{hidden_of(operation)} * reference::bytes_of(type);
  }

  const reference::Routing& expected(int update) const { return *job_->updates[update].expected; }
  int64_t tokens_of(const Dispatch& dispatch) const {
    return expected(dispatch.update).batch(rank_.rank).num_tokens;
  }
  int64_t rows_of(const Combine& combine) const {
    return expected(combine.update)
        .at(rank_.rank)
        .output_rows(combine.layout, combine.capacity[rank_.rank]);
  }
  hepResult_t expected_async_error() const;
  std::string where(const char* operation, ptrdiff_t index) const;

  const Job* job_;
  Rank& rank_;
  hepBackend_t backend_;
  std::vector<harness::GuardedBuffer> routing_memory_;
  std::vector<std::unique_ptr<RoutingHandle>> routings_;
  bool registers_ = false;      // on some rank an input lies in registered memory
  harness::Buffer registered_;  // of this rank
  size_t registered_used_ = 0;
  std::vector<UpdateRun> updates_;
  std::vector<DispatchRun> dispatches_;
  std::vector<CombineRun> combines_;
  std::vector<harness::Buffer> kept_inputs_, kept_outputs_;
};

// Runs a job on a communicator of its own, from all ranks, which verify what they got.
void run_job(const hepConfig_t& config, const Job& job);
