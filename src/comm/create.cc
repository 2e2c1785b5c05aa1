// SPDX-License-Identifier: Apache-2.0
#include "comm/create.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/plan.h"
#include "base/fault_point.h"
#include "base/identity.h"
#include "base/log.h"
#include "base/rank_threads.h"
#include "bootstrap/bootstrap.h"
#include "comm/agreement.h"
#include "config/config.h"
#include "config/ranks.h"
#include "gpu/device.h"
#include "memory/choose_kind.h"
#include "protocol/at.h"
#include "protocol/shape.h"

namespace hep {
namespace {

// A rank whose own config is wrong still tells its peers, and waits for them at most so long:
// enough for those that start late, and no longer, because there is nothing to come of the wait.
constexpr int kBadConfigTimeoutMs = 10000;

// What ranks compare before they allocate anything.
struct Hello {
  uint32_t version;
  hepConfig_t config;  // resolved, without pointers
  uint32_t memory_kinds;
  uint64_t host;
  uint64_t process;
  uint64_t token;     // rank 0's names the communicator
  DeviceUuid device;  // zeros on the host backend
};

// All-gathers the payloads of ranks that have come this far.
template <typename Payload>
Status agree(Bootstrap& bootstrap, int num_ranks, const char* phase, Deadline deadline,
             const Status& own, const Payload& payload, std::vector<Payload>* payloads) {
  const auto exchange = [&](const void* send, void* receive, size_t bytes) {
    return bootstrap.all_gather(send, receive, bytes, phase, deadline);
  };
  return agree_over(exchange, num_ranks, own, payload, payloads);
}

Status agree(Bootstrap& bootstrap, int num_ranks, const char* phase, Deadline deadline,
             const Status& own) {
  return agree<Empty>(bootstrap, num_ranks, phase, deadline, own, Empty{}, nullptr);
}

// Every rank compares every other with rank 0, so all come to the same sentence.
Status compare(const std::vector<Hello>& hellos) {
  for (size_t r = 1; r < hellos.size(); ++r) {
    if (hellos[r].version != hellos[0].version)
      return error(hepErrorMismatch, "rank 0 and rank %zu differ in version (%u and %u)", r,
                   hellos[0].version, hellos[r].version);
    const std::string difference = config_difference(hellos[0].config, hellos[r].config);
    if (!difference.empty())
      return error(hepErrorMismatch, "rank 0 and rank %zu differ in %s", r, difference.c_str());
  }
  return Status();
}

// Resolves the backend `auto` and finds the device.
Status choose_backend(hepComm& comm) {
  hepConfig_t& config = comm.config;
  if (config.backend != hepBackendHost) {
    const Status found = find_cuda_device(&comm.device);
    if (found.ok()) {
      if (config.backend == hepBackendAuto)
        log_message(hepLogInfo, "rank %d: backend cuda is used on device %d", comm.rank,
                    comm.device);
      config.backend = hepBackendCuda;
      HEP_TRY(bind_cuda_device(comm.device));  // starts CUDA there, once for all that follows
      comm.capability_major = capability_major(comm.device);
    } else {
      if (config.backend == hepBackendCuda) return found;
      config.backend = hepBackendHost;
      log_message(hepLogInfo, "rank %d: backend host is used: %s", comm.rank,
                  found.message().c_str());
    }
  }
  if (config.backend == hepBackendHost) comm.device = -1;
  return Status();
}

Status prepare(const hepConfig_t* config, hepComm& comm, Hello* hello) {
  HEP_TRY(resolve_config(config, comm.num_ranks, &comm.config));
  comm.log.set(comm.config.log, comm.config.log_context);
  HEP_TRY(choose_backend(comm));
  comm.set_lanes(make_lanes(comm.config, comm.num_ranks));

  hello->version = HEP_VERSION;
  hello->config = comm.config;
  hello->config.log = nullptr;
  hello->config.log_context = nullptr;
  HEP_TRY(probe_memory_kinds(static_cast<hepBackend_t>(comm.config.backend), comm.device,
                             &hello->memory_kinds));
  HEP_TRY(read_host_identity());
  hello->host = host_identity();
  hello->process = process_identity();
  HEP_TRY(random_bytes(&hello->token, sizeof hello->token));
  if (comm.config.backend == hepBackendCuda) HEP_TRY(device_uuid(comm.device, &hello->device));
  return fault_point("prepare", comm.rank);
}

// Several ranks on a device are for tests: elsewhere it is a mistake in the job's launch.
void log_shared_device(const std::vector<Hello>& hellos, const hepComm& comm) {
  if (comm.config.backend != hepBackendCuda) return;
  for (int r = 0; r < comm.num_ranks; ++r)
    if (r != comm.rank && hellos[r].device == hellos[comm.rank].device)
      log_message(hepLogInfo, "rank %d: its device %d is rank %d's too", comm.rank, comm.device, r);
}

// Operations that wait for each other, and do not find room together, may wait until the timeout.
void warn_of_lanes_without_room(const hepComm& comm) {
  int num_sms = 0;
  if (comm.config.backend != hepBackendCuda || !count_sms(comm.device, &num_sms).ok()) return;
  const int blocks = blocks_of_all(comm.lanes, profile_of(comm.capability_major));
  if (blocks <= num_sms) return;
  log_message(
      hepLogWarning,
      "rank %d: the operations of its %zu lanes take %d SMs if they run at the same time, but "
      "device %d has %d: see LANES in hybridep.h",
      comm.rank, comm.lanes.size(), blocks, comm.device, num_sms);
}

Status create_window(const std::vector<Hello>& hellos, hepComm& comm, WindowHandle* handle) {
  std::vector<uint32_t> masks;
  for (const Hello& hello : hellos) {
    masks.push_back(hello.memory_kinds);
    comm.several_hosts |= hello.host != hellos[0].host;
  }
  MemoryKind kind;
  HEP_TRY(choose_memory_kind(static_cast<hepBackend_t>(comm.config.backend), masks,
                             comm.several_hosts, &kind));
  HEP_TRY(Window::create(kind, comm.device, window_bytes(comm.lanes), &comm.window));
  *handle = comm.window->handle();
  return Status();
}

// How the others reach this rank.
struct Address {
  WindowHandle window;
  LinkAddress link;
};

Status open_to_peers(const std::vector<Hello>& hellos, hepComm& comm, Address* address) {
  HEP_TRY(create_window(hellos, comm, &address->window));
  HEP_TRY(fault_point("window", comm.rank));
  std::vector<uint64_t> processes;
  for (const Hello& hello : hellos) processes.push_back(hello.process);
  HEP_TRY(PeerMember::open(hellos[0].token, processes, comm.rank, &comm.member));
  address->link = comm.member->address();
  return fault_point("listen", comm.rank);
}

Status connect_to_peers(const std::vector<Address>& addresses, hepComm& comm, Deadline deadline) {
  std::vector<WindowHandle> windows;
  std::vector<LinkAddress> links;
  for (const Address& address : addresses) {
    windows.push_back(address.window);
    links.push_back(address.link);
  }
  HEP_TRY(fault_point("meet", comm.rank));
  HEP_TRY(comm.window->connect(windows, comm.rank, deadline));
  HEP_TRY(fault_point("map", comm.rank));
  HEP_TRY(comm.member->connect(links, deadline));
  return fault_point("connect", comm.rank);
}

Status create_backend(hepComm& comm) {
  BackendContext context{comm.rank, comm.device, comm.config.timeout_ms, {}};
  for (const Lane& lane : comm.lanes) {
    LaneContext seen{lane, comm.rank, {}};
    for (int r = 0; r < comm.num_ranks; ++r)
      seen.windows.push_back(at<char>(comm.window->address(r), lane.offset));
    context.lanes.push_back(std::move(seen));
  }
  context.registrations = &comm.registrations;
  comm.heap = std::make_unique<Heap>(align_up(comm.config.heap_bytes, Heap::kAlignment));
  const bool cuda = comm.config.backend == hepBackendCuda;
  HEP_TRY(cuda ? create_cuda_backend(std::move(context), &comm.backend)
               : create_host_backend(std::move(context), &comm.backend));
  HEP_TRY(fault_point("backend", comm.rank));
  comm.health = std::make_unique<Health>(comm.rank, comm.num_ranks, *comm.backend, *comm.member);
  HEP_TRY(comm.health->start(cuda));  // whose kernels fail without a call of the host
  return fault_point("start", comm.rank);
}

}  // namespace

Status create_comm(const hepUniqueId_t& id, int rank, int num_ranks, const hepConfig_t* config,
                   std::unique_ptr<hepComm>* out) {
  HEP_TRY(check_rank(rank, num_ranks));

  auto comm = std::make_unique<hepComm>();
  comm->rank = rank;
  comm->num_ranks = num_ranks;
  Hello hello{};
  const Status prepared = prepare(config, *comm, &hello);
  const int timeout_ms = wanted_init_timeout_ms(config);
  const Deadline deadline =
      Deadline::after_ms(prepared.ok() ? timeout_ms : std::min(timeout_ms, kBadConfigTimeoutMs));
  std::unique_ptr<Bootstrap> bootstrap;
  const Status joined = Bootstrap::join(id, rank, num_ranks, deadline, &bootstrap);
  if (!prepared.ok() && !joined.ok()) return prepared;
  HEP_TRY(joined);

  std::vector<Hello> hellos;
  HEP_TRY(agree(*bootstrap, num_ranks, "config", deadline, prepared, hello, &hellos));
  HEP_TRY(compare(hellos));
  log_shared_device(hellos, *comm);
  warn_of_lanes_without_room(*comm);

  Address address{};
  const Status opened = open_to_peers(hellos, *comm, &address);
  std::vector<Address> addresses;
  HEP_TRY(agree(*bootstrap, num_ranks, "memory", deadline, opened, address, &addresses));

  // The peers wait for this rank's connections, not for its next message: they must hear of a failure
  // at once, and this rank of theirs.
  Status connected = connect_to_peers(addresses, *comm, deadline.or_news(bootstrap->interrupt()));
  if (!connected.ok())
    connected = {connected.result(), attribute(rank, connected.message().c_str())};
  if (!connected.ok() && certainty_of(connected.result()) == Certainty::kOwn)
    bootstrap->fail(connected);
  HEP_TRY(agree(*bootstrap, num_ranks, "connections", deadline, connected));
  comm->window->release_descriptors();

  const Status started = create_backend(*comm);
  HEP_TRY(agree(*bootstrap, num_ranks, "backend", deadline, started));
  *out = std::move(comm);
  return Status();
}

Status create_comm_over_callback(hepAllGather_t all_gather, void* context, int rank, int num_ranks,
                                 Status own, const hepConfig_t* config,
                                 std::unique_ptr<hepComm>* out) {
  if (own.ok()) own = check_rank(rank, num_ranks);
  hepUniqueId_t id;
  HEP_TRY(unique_id_over_callback(all_gather, context, rank, num_ranks, own, &id));
  return create_comm(id, rank, num_ranks, config, out);
}

Status create_comm_over_nccl(ncclComm* nccl, const hepConfig_t* config,
                             std::unique_ptr<hepComm>* out) {
  hepUniqueId_t id;
  int rank, num_ranks, device;
  HEP_TRY(
      unique_id_over_nccl(nccl, wanted_init_timeout_ms(config), &id, &rank, &num_ranks, &device));
  return keep_current_device([&]() -> Status {
    HEP_TRY(bind_cuda_device(device));
    return create_comm(id, rank, num_ranks, config, out);
  });
}

// Checks every device before any rank starts, so that a wrong one does not leave the others
// waiting. *bind tells whether ranks must be bound to devices at all.
static Status check_devices(int num_ranks, const int* devices, int32_t backend, bool* bind) {
  int current = -1;
  const Status found =
      backend == hepBackendHost ? error(hepErrorUnsupported, "host") : find_cuda_device(&current);
  *bind = backend == hepBackendCuda || found.ok();
  if (!*bind) return Status();
  return keep_current_device([&]() -> Status {
    for (int r = 0; r < num_ranks; ++r)
      HEP_TRY(bind_cuda_device(devices != nullptr ? devices[r] : r));
    return Status();
  });
}

Status create_all_comms(int num_ranks, const int* devices, const hepConfig_t* config,
                        hepComm_t* comms) {
  HEP_TRY(check_num_ranks(num_ranks));
  for (int r = 0; r < num_ranks; ++r) comms[r] = nullptr;
  hepConfig_t resolved;
  HEP_TRY(resolve_config(config, num_ranks, &resolved));
  bool bind;
  HEP_TRY(check_devices(num_ranks, devices, resolved.backend, &bind));
  hepUniqueId_t id;
  HEP_TRY(create_unique_id(&id, Reach::kMachine));

  std::vector<std::unique_ptr<hepComm>> created(num_ranks);
  const auto create = [&](int r) -> Status {
    if (bind) HEP_TRY(bind_cuda_device(devices != nullptr ? devices[r] : r));
    return create_comm(id, r, num_ranks, config, &created[r]);
  };
  HEP_TRY(most_telling(run_rank_threads(num_ranks, create)));
  for (int r = 0; r < num_ranks; ++r) comms[r] = release_to_caller(std::move(created[r]));
  return Status();
}

}  // namespace hep
