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

// A rank whose own config is wrong still tells its peers. It waits for them at most this long,
// which is enough for those that start late. A longer wait would gain nothing.
constexpr int kBadConfigTimeoutMs = 10000;

// The least SM budget.
constexpr int kFewestSms = 2;

// Ranks compare these before they allocate anything.
struct Hello {
  uint32_t version;
  hepConfig_t config;  // resolved, without pointers
  uint32_t memory_kinds;
  uint64_t host;
  uint64_t process;
  uint64_t token;     // rank 0's names the communicator
  DeviceUuid device;  // zeros on the host backend
};

// Agrees on a step, as agree_over() says, and all-gathers the payloads.
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

// Every rank compares every other rank with rank 0, so all ranks get the same sentence.
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
Status choose_backend(CommParts& parts) {
  hepConfig_t& config = parts.config;
  if (config.backend != hepBackendHost) {
    const Status found = find_cuda_device(&parts.device);
    if (found.ok()) {
      if (config.backend == hepBackendAuto)
        log_message(hepLogInfo, "rank %d: backend cuda is used on device %d", parts.rank,
                    parts.device);
      config.backend = hepBackendCuda;
      HEP_TRY(bind_cuda_device(parts.device));  // starts CUDA there, once for all that follows
      parts.capability_major = capability_major(parts.device);
      HEP_TRY(count_sms(parts.device, &parts.sms));
    } else {
      if (config.backend == hepBackendCuda) return found;
      config.backend = hepBackendHost;
      log_message(hepLogInfo, "rank %d: backend host is used: %s", parts.rank,
                  found.message().c_str());
    }
  }
  if (config.backend == hepBackendHost) parts.device = -1;
  return Status();
}

Status prepare(const hepConfig_t* config, CommParts& parts, Hello* hello) {
  HEP_TRY(resolve_config(config, parts.num_ranks, &parts.config));
  parts.log.set(parts.config.log, parts.config.log_context);
  HEP_TRY(choose_backend(parts));
  HEP_TRY(check_domains(parts.config, parts.num_ranks));

  hello->version = HEP_VERSION;
  hello->config = parts.config;
  hello->config.log = nullptr;
  hello->config.log_context = nullptr;
  HEP_TRY(probe_memory_kinds(static_cast<hepBackend_t>(parts.config.backend), parts.device,
                             &hello->memory_kinds));
  HEP_TRY(read_host_identity());
  hello->host = host_identity();
  hello->process = process_identity();
  HEP_TRY(random_bytes(&hello->token, sizeof hello->token));
  if (parts.config.backend == hepBackendCuda) HEP_TRY(device_uuid(parts.device, &hello->device));
  return fault_point("prepare", parts.rank);
}

// On the host backend the ranks of each host are a domain, unless domain_size says otherwise. On
// the cuda backend fabric memory joins hosts.
Status find_domains(const std::vector<Hello>& hellos, CommParts& parts) {
  int32_t& size = parts.config.domain_size;
  if (size == 0 && parts.config.backend == hepBackendHost) {
    std::vector<uint64_t> hosts;
    for (const Hello& hello : hellos) hosts.push_back(hello.host);
    HEP_TRY(detect_domain_size(hosts, &size));
  }
  size = make_topology(parts.config, parts.num_ranks).domain_size;
  HEP_TRY(check_domains(parts.config, parts.num_ranks));
  parts.lanes = make_lanes(parts.config, parts.num_ranks);
  return Status();
}

// Several ranks on a device are for tests. Elsewhere they are a mistake in the launch of the job.
// They share the SMs of the device.
void note_shared_device(const std::vector<Hello>& hellos, CommParts& parts) {
  if (parts.config.backend != hepBackendCuda) return;
  int ranks = 0;
  for (int r = 0; r < parts.num_ranks; ++r) {
    if (hellos[r].device != hellos[parts.rank].device) continue;
    ++ranks;
    if (r != parts.rank)
      log_message(hepLogInfo, "rank %d: its device %d is rank %d's too", parts.rank, parts.device,
                  r);
  }
  parts.sms = std::max(parts.sms / ranks, kFewestSms);
}

// Operations that wait for each other, but do not find room at the same time, may wait until the
// timeout.
void warn_of_lanes_without_room(const CommParts& parts) {
  int num_sms = 0;
  if (parts.config.backend != hepBackendCuda || !count_sms(parts.device, &num_sms).ok()) return;
  const int blocks = blocks_of_all(parts.lanes, parts.gpu());
  if (blocks <= num_sms) return;
  log_message(
      hepLogWarning,
      "rank %d: the operations of its %zu lanes take %d SMs if they run at the same time, but "
      "device %d has %d: see LANES in hybridep.h",
      parts.rank, parts.lanes.size(), blocks, parts.device, num_sms);
}

// Of the largest batch that a lane serves, by layout.
std::string text_of(const ChosenBlocks& chosen) {
  const auto list = [](const int32_t* blocks) {
    std::string text;
    for (int layout = 0; layout < kNumLayouts; ++layout)
      text += (layout == 0 ? " " : "/") + std::to_string(blocks[layout]);
    return text;
  };
  return "dispatch" + list(chosen.dispatch) + ", combine" + list(chosen.combine);
}

void log_chosen_sms(const CommParts& parts) {
  if (parts.config.backend != hepBackendCuda) return;
  const Lane &first = parts.lanes.front(), &last = parts.lanes.back();
  const auto chosen = [&](const Lane& lane) {
    return text_of(chosen_blocks(make_plan(lane, parts.gpu()), parts.config));
  };
  log_message(hepLogInfo,
              "rank %d: SMs of the largest batch, flat/expert-major/expert-padded: %s%s",
              parts.rank, chosen(first).c_str(),
              last.mode == hepModeLowLatency ? ("; low latency: " + chosen(last)).c_str() : "");
}

Status create_window(const std::vector<Hello>& hellos, CommParts& parts, WindowHandle* handle) {
  std::vector<uint32_t> masks;
  for (int r = 0; r < parts.num_ranks; ++r) {
    if (!parts.topology().share_domain(r, parts.rank)) continue;
    masks.push_back(hellos[r].memory_kinds);
    parts.several_hosts |= hellos[r].host != hellos[parts.rank].host;
  }
  MemoryKind kind;
  HEP_TRY(choose_memory_kind(static_cast<hepBackend_t>(parts.config.backend), masks,
                             parts.several_hosts, &kind));
  HEP_TRY(Window::create(kind, parts.device, window_bytes(parts.lanes), &parts.window));
  *handle = parts.window->handle();
  return Status();
}

// Tells the others how to reach this rank.
struct Address {
  WindowHandle window;
  LinkAddress link;
};

Status open_to_peers(const std::vector<Hello>& hellos, CommParts& parts, Address* address) {
  HEP_TRY(create_window(hellos, parts, &address->window));
  HEP_TRY(fault_point("window", parts.rank));
  std::vector<uint64_t> processes;
  for (const Hello& hello : hellos) processes.push_back(hello.process);
  HEP_TRY(PeerMember::open(hellos[0].token, processes, parts.rank, &parts.member));
  address->link = parts.member->address();
  return fault_point("listen", parts.rank);
}

Status connect_to_peers(const std::vector<Address>& addresses, CommParts& parts,
                        Deadline deadline) {
  std::vector<WindowHandle> windows;
  std::vector<LinkAddress> links;
  for (int r = 0; r < parts.num_ranks; ++r) {
    const bool maps = parts.topology().share_domain(r, parts.rank);
    windows.push_back(maps ? addresses[r].window : WindowHandle{});
    links.push_back(addresses[r].link);
  }
  HEP_TRY(fault_point("meet", parts.rank));
  HEP_TRY(parts.window->connect(windows, parts.rank, deadline));
  HEP_TRY(fault_point("map", parts.rank));
  HEP_TRY(parts.member->connect(links, deadline));
  return fault_point("connect", parts.rank);
}

// The network reads and writes all but the words and sums that the ranks of a domain share.
Status open_network(CommParts& parts, NetworkAddress* address) {
  std::vector<NetworkSection> sections;
  for (const Lane& lane : parts.lanes) {
    const uint64_t offset = lane.offset + lane.network_layout.calls_out;
    sections.push_back({at<char>(parts.window->address(parts.rank), offset), offset,
                        lane.network_layout.relay - lane.network_layout.calls_out});
  }
  const Topology& topology = parts.topology();
  HEP_TRY(Network::open({parts.rank, topology.domain_size, topology.num_domains(), {}}, sections,
                        &parts.network));
  *address = parts.network->address();
  return fault_point("network", parts.rank);
}

Status connect_network(Bootstrap& bootstrap, CommParts& parts, Deadline deadline) {
  if (parts.topology().num_domains() == 1) return Status();
  NetworkAddress address{};
  const Status opened = open_network(parts, &address);
  std::vector<NetworkAddress> addresses;
  HEP_TRY(agree(bootstrap, parts.num_ranks, "network", deadline, opened, address, &addresses));
  const Status connected = parts.network->connect(addresses, deadline);
  return agree(bootstrap, parts.num_ranks, "rails", deadline, connected);
}

Status start_network(CommParts& parts) {
  const Topology& topology = parts.topology();
  ProxyPlan plan{};
  plan.rank = parts.rank;
  plan.domain = topology.domain_of(parts.rank);
  plan.num_domains = topology.num_domains();
  for (int domain = 0; domain < topology.num_domains(); ++domain)
    plan.rail.push_back(topology.rank_of(domain, topology.number_of(parts.rank)));
  parts.backend->join_network(&plan);
  return parts.network->start(std::move(plan), *parts.health);
}

Status create_backend(CommParts& parts) {
  BackendContext context{parts.rank, parts.device, parts.sms, parts.config.timeout_ms,
                         {},         nullptr,      {}};
  for (const Lane& lane : parts.lanes) {
    LaneContext seen{lane, parts.rank, {}};
    for (int r = 0; r < parts.num_ranks; ++r) {
      const bool maps = parts.topology().share_domain(r, parts.rank);
      seen.windows.push_back(maps ? at<char>(parts.window->address(r), lane.offset) : nullptr);
    }
    context.lanes.push_back(std::move(seen));
  }
  context.registrations = &parts.registrations;
  context.wake_network = [&parts] { parts.network->proxy().wake(); };
  parts.heap = std::make_unique<Heap>(align_up(parts.config.heap_bytes, Heap::kAlignment));
  const bool cuda = parts.config.backend == hepBackendCuda;
  HEP_TRY(cuda ? create_cuda_backend(std::move(context), &parts.backend)
               : create_host_backend(std::move(context), &parts.backend));
  HEP_TRY(fault_point("backend", parts.rank));
  parts.health = std::make_unique<Health>(parts.rank, parts.topology(), *parts.backend,
                                          *parts.member, parts.network.get());
  if (parts.network) HEP_TRY(start_network(parts));
  HEP_TRY(parts.health->start(cuda));  // kernels fail without a call of the backend
  return fault_point("start", parts.rank);
}

}  // namespace

Status create_comm(const hepUniqueId_t& id, int rank, int num_ranks, const hepConfig_t* config,
                   std::unique_ptr<hepComm>* out) {
  HEP_TRY(check_rank(rank, num_ranks));

  auto parts = std::make_unique<CommParts>();
  parts->rank = rank;
  parts->num_ranks = num_ranks;
  Hello hello{};
  const Status prepared = prepare(config, *parts, &hello);
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
  HEP_TRY(find_domains(hellos, *parts));
  note_shared_device(hellos, *parts);
  warn_of_lanes_without_room(*parts);

  Address address{};
  const Status opened = open_to_peers(hellos, *parts, &address);
  std::vector<Address> addresses;
  HEP_TRY(agree(*bootstrap, num_ranks, "memory", deadline, opened, address, &addresses));

  // The peers wait for this rank's connections, not for its next message. They must hear of its
  // failure at once, and it of theirs.
  Status connected =
      connect_to_peers(addresses, *parts, deadline.or_interrupt(bootstrap->interrupt()));
  if (!connected.ok())
    connected = {connected.result(), attribute(rank, connected.message().c_str())};
  if (!connected.ok() && certainty_of(connected.result()) == Certainty::kOwn)
    bootstrap->fail(connected);
  HEP_TRY(agree(*bootstrap, num_ranks, "connections", deadline, connected));
  parts->window->release_descriptors();
  HEP_TRY(connect_network(*bootstrap, *parts, deadline));

  const Status started = create_backend(*parts);
  const CommParts& made = *parts;
  auto comm = std::make_unique<hepComm>(std::move(parts));  // nothing may fail after the last step
  HEP_TRY(agree(*bootstrap, num_ranks, "backend", deadline, started));
  log_chosen_sms(made);
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

// Checks every device before any rank starts, so that a wrong device does not leave the other ranks
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
