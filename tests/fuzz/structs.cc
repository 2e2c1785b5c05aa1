// SPDX-License-Identifier: Apache-2.0
// The structs of the API, filled with anything, of any size that their memory has.
#include <hybridep.h>

#include <cstddef>
#include <vector>

#include "input.h"

namespace {

using fuzz::require;

constexpr size_t kHeaderBytes = 16;
constexpr int kMaxTokens = 4;
constexpr int kExperts = 2;

// In memory of just its size, so that the address sanitizer sees what is read or written past it.
class Struct {
 public:
  // `magic` is put in its place, unless the input wants its own.
  Struct(fuzz::Input& input, uint32_t magic) {
    const bool good_magic = input.byte() % 8 != 0;
    const size_t length = 2 * input.byte();
    bytes_.resize(std::max(length, kHeaderBytes));
    input.take(bytes_.data(), length);
    if (good_magic) std::memcpy(bytes_.data() + sizeof(size_t), &magic, sizeof magic);
    size_t size;
    std::memcpy(&size, bytes_.data(), sizeof size);
    // A size that lies about the memory is the caller's fault; one that no struct can have is not.
    if (size > bytes_.size() && size <= 4096) size = bytes_.size();
    std::memcpy(bytes_.data(), &size, sizeof size);
  }

  size_t num_bytes() const { return bytes_.size(); }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(bytes_.data());
  }

 private:
  std::vector<char> bytes_;
};

// One rank on the host backend whose routing has no tokens: no call has a row to read or write, so
// that pointers to what there is for a row or a token may be anything.
struct Job {
  hepComm_t comm = nullptr;
  hepRouting_t routing = nullptr;
  hepRouting_t low_latency = nullptr;

  Job() {
    hepUniqueId_t id;
    hepConfig_t config = HEP_CONFIG_INITIALIZER;
    config.backend = hepBackendHost;
    config.max_tokens = kMaxTokens;
    config.hidden = 8;
    config.num_experts = kExperts;
    config.lanes = 2;
    config.low_latency_tokens = kMaxTokens;
    hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
    place.mode = hepModeLowLatency;
    hepUpdate_t nothing = HEP_UPDATE_INITIALIZER;
    nothing.top_k = 1;
    require(hepGetUniqueId(&id) == hepSuccess &&
                hepCommInitRank(&comm, 1, &id, 0, &config) == hepSuccess &&
                hepRoutingCreate(&routing, comm, nullptr) == hepSuccess &&
                hepRoutingUpdate(routing, &nothing, nullptr) == hepSuccess &&
                hepRoutingCreate(&low_latency, comm, &place) == hepSuccess &&
                hepRoutingUpdate(low_latency, &nothing, nullptr) == hepSuccess,
            "a job of one rank starts");
  }
  ~Job() {
    hepRoutingDestroy(low_latency);
    hepRoutingDestroy(routing);
    hepCommDestroy(comm);
  }
};

void check_config(fuzz::Input& input) {
  const int num_ranks = static_cast<int8_t>(input.byte());
  Struct config(input, HEP_CONFIG_MAGIC);
  Struct workspace(input, HEP_WORKSPACE_MAGIC);
  const hepResult_t checked = hepConfigCheck(config.as<hepConfig_t>(), num_ranks);
  const hepResult_t sized =
      hepWorkspaceSize(config.as<hepConfig_t>(), num_ranks, workspace.as<hepWorkspace_t>());
  require(
      checked == hepSuccess || checked == hepErrorInvalidArgument || checked == hepErrorUnsupported,
      "a config is legal, illegal or not served");
  require(checked == hepSuccess || sized != hepSuccess, "an illegal config has no size");
}

// An update may not bring tokens, which would have to lie somewhere.
hepUpdate_t* update_args(Struct& args) {
  auto* update = args.as<hepUpdate_t>();
  if (args.num_bytes() >= offsetof(hepUpdate_t, num_tokens) + sizeof(int64_t) &&
      update->num_tokens > 0 && update->num_tokens <= kMaxTokens)
    update->num_tokens = 0;
  return update;
}

// Whether a pointer is in the memory of a struct, and is given.
template <typename Args, typename T>
bool gives(Struct& args, T* Args::*pointer) {
  static const Args none{};
  const auto offset =
      reinterpret_cast<const char*>(&(none.*pointer)) - reinterpret_cast<const char*>(&none);
  return args.num_bytes() >= offset + sizeof(T*) && args.as<Args>()->*pointer != nullptr;
}

// Rows are counted also where there are none.
hepDispatchArgs_t* dispatch_args(Struct& args, Struct& update) {
  static int32_t expert_rows[kExperts];
  auto* dispatch = args.as<hepDispatchArgs_t>();
  static int64_t group_sizes[kExperts];
  static hepRowCounters_t row_counters;
  if (gives(args, &hepDispatchArgs_t::expert_rows)) dispatch->expert_rows = expert_rows;
  if (gives(args, &hepDispatchArgs_t::update)) dispatch->update = update_args(update);
  if (gives(args, &hepDispatchArgs_t::group_sizes)) dispatch->group_sizes = group_sizes;
  if (gives(args, &hepDispatchArgs_t::row_counters)) dispatch->row_counters = &row_counters;
  return dispatch;
}

void dispatch_in_halves(const Job& job, fuzz::Input& input) {
  Struct args(input, HEP_DISPATCH_ARGS_MAGIC);
  Struct update(input, HEP_UPDATE_MAGIC);
  if (hepDispatchSend(job.low_latency, dispatch_args(args, update), nullptr) == hepSuccess)
    require(hepDispatchReceive(job.low_latency, nullptr) == hepSuccess,
            "a first half that was taken has a second");
}

void create_routing(const Job& job, fuzz::Input& input) {
  Struct config(input, HEP_ROUTING_CONFIG_MAGIC);
  hepRouting_t routing = nullptr;
  if (hepRoutingCreate(&routing, job.comm, config.as<hepRoutingConfig_t>()) == hepSuccess)
    require(hepRoutingDestroy(routing) == hepSuccess, "what was created can be destroyed");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Job job;
  fuzz::Input input(data, size);
  switch (input.byte() % 7) {
    case 0: check_config(input); break;
    case 1: {
      Struct args(input, HEP_DISPATCH_ARGS_MAGIC);
      Struct update(input, HEP_UPDATE_MAGIC);
      hepDispatch(job.routing, dispatch_args(args, update), nullptr);
      break;
    }
    case 2: {
      Struct args(input, HEP_COMBINE_ARGS_MAGIC);
      hepCombine(job.routing, args.as<hepCombineArgs_t>(), nullptr);
      break;
    }
    case 3: create_routing(job, input); break;
    case 4: {
      Struct view(input, HEP_ROUTING_VIEW_MAGIC);
      hepRoutingGetView(job.routing, view.as<hepRoutingView_t>());
      break;
    }
    case 5: dispatch_in_halves(job, input); break;
    default: {
      Struct update(input, HEP_UPDATE_MAGIC);
      hepRoutingUpdate(job.routing, update_args(update), nullptr);
    }
  }
  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  args.layout = hepLayoutFlat;
  require(hepDispatch(job.routing, &args, nullptr) == hepSuccess,
          "a call that was refused leaves the communicator as it was");
  return 0;
}
