// SPDX-License-Identifier: Apache-2.0
#include "comm/registration.h"

#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "comm/agreement.h"
#include "gpu/device.h"

namespace hep {
namespace {

enum class Call : int32_t { kRegister, kDeregister };

const char* name_of(Call call) {
  return call == Call::kRegister ? "hepCommRegister" : "hepCommDeregister";
}

// What a rank brings along.
struct Part {
  Call call;
  int32_t slot;  // among its registrations; -1: none
  RegisteredHandle handle;
};
static_assert(sizeof(AgreementMessage<Part>) <= PeerGroup::kMaxGatherBytes);

Deadline deadline_of(const CommParts& comm) { return Deadline::after_ms(comm.config.timeout_ms); }

// A rank that does not come fails the communicator, like any wait for a peer.
template <typename Payload>
Status agree(CommParts& comm, Call call, const Status& own, const Payload& payload,
             std::vector<Payload>* payloads) {
  const auto exchange = [&](const void* send, void* receive, size_t bytes) -> Status {
    int missing = -1;
    const Status gathered =
        comm.member->all_gather(send, receive, bytes, deadline_of(comm), &missing);
    if (gathered.ok()) return gathered;
    HEP_TRY(comm.health->check());
    comm.health->fail(gathered.result(), missing,
                      std::string(name_of(call)) + ": " + gathered.message());
    return comm.health->check();
  };
  return agree_over(exchange, comm.num_ranks, own, payload, payloads);
}

Status agree(CommParts& comm, Call call, const Status& own) {
  return agree<Empty>(comm, call, own, Empty{}, nullptr);
}

// Every rank compares every other with rank 0, so all come to the same sentence.
Status check_calls(const std::vector<Part>& parts) {
  for (size_t r = 1; r < parts.size(); ++r)
    if (parts[r].call != parts[0].call)
      return error(hepErrorMismatch, "rank 0 calls %s, but rank %zu %s", name_of(parts[0].call), r,
                   name_of(parts[r].call));
  return Status();
}

bool maps_memory(const CommParts& comm) { return comm.config.backend == hepBackendCuda; }

Status prepare(CommParts& comm, void* pointer, size_t bytes, Part* part,
               std::unique_ptr<RegisteredMemory>* memory) {
  HEP_TRY(comm.registrations.find_slot(pointer, bytes, &part->slot));
  if (!maps_memory(comm)) return Status();
  HEP_TRY(check_not_capturing(comm.device));
  HEP_TRY(RegisteredMemory::create(comm.device, pointer, bytes, comm.several_hosts, memory));
  part->handle = (*memory)->handle();
  return Status();
}

// Maps what the peers have registered, and tells the kernels where it is.
Status map_parts(CommParts& comm, void* pointer, const std::vector<Part>& parts,
                 RegisteredMemory& memory, std::vector<std::unique_ptr<Mapping>>* mappings) {
  std::vector<RegisteredHandle> handles;
  for (const Part& part : parts) handles.push_back(part.handle);
  HEP_TRY(memory.map_peers(handles, comm.rank, deadline_of(comm), mappings));
  std::vector<RegisteredAddress> addresses;
  for (int r = 0; r < comm.num_ranks; ++r) {
    void* address = pointer;
    if (r != comm.rank && (*mappings)[r])
      address = static_cast<char*>((*mappings)[r]->address()) + handles[r].offset;
    if (parts[r].slot >= 0) addresses.push_back({parts[r].slot, r, address});
  }
  return comm.backend->set_registered(addresses);
}

// Keeps this rank's range and its mappings of the peers' ranges. If it has no range, *memory stays
// with the caller.
void keep(CommParts& comm, void* pointer, size_t bytes, const std::vector<Part>& parts,
          std::unique_ptr<RegisteredMemory>* memory,
          std::vector<std::unique_ptr<Mapping>> mappings) {
  for (int r = 0; r < static_cast<int>(mappings.size()); ++r)
    if (mappings[r]) comm.registrations.keep_mapping(r, parts[r].slot, std::move(mappings[r]));
  const int slot = parts[comm.rank].slot;
  if (slot >= 0) comm.registrations.add(pointer, bytes, slot, std::move(*memory));
}

void drop(CommParts& comm, void* pointer, const std::vector<Part>& parts) {
  for (int r = 0; r < comm.num_ranks; ++r) comm.registrations.unmap(r, parts[r].slot);
  comm.registrations.remove(pointer);
}

Status take_registration(CommParts& comm, void* pointer, size_t bytes) {
  Part part{};
  part.call = Call::kRegister;
  std::unique_ptr<RegisteredMemory> memory;
  const Status prepared = prepare(comm, pointer, bytes, &part, &memory);
  std::vector<Part> parts;
  HEP_TRY(agree(comm, part.call, prepared, part, &parts));
  HEP_TRY(check_calls(parts));

  std::vector<std::unique_ptr<Mapping>> mappings;
  const Status mapped =
      maps_memory(comm) ? map_parts(comm, pointer, parts, *memory, &mappings) : Status();
  RegisteredMemory* const own = memory.get();
  // Nothing may fail after the last step.
  keep(comm, pointer, bytes, parts, &memory, std::move(mappings));
  const Status agreed = agree(comm, part.call, mapped);
  if (!agreed.ok())
    drop(comm, pointer, parts);
  else if (own != nullptr)
    own->release_descriptors();
  return agreed;
}

Status take_deregistration(CommParts& comm, void* pointer) {
  Part part{};
  part.call = Call::kDeregister;
  Status prepared = comm.registrations.registration_of(pointer, &part.slot);
  if (prepared.ok() && maps_memory(comm)) prepared = check_not_capturing(comm.device);
  std::vector<Part> parts;
  HEP_TRY(agree(comm, part.call, prepared, part, &parts));
  HEP_TRY(check_calls(parts));

  for (int r = 0; r < comm.num_ranks; ++r) comm.registrations.unmap(r, parts[r].slot);
  // The memory is the caller's again only when no peer has it mapped any more.
  HEP_TRY(agree(comm, part.call, Status()));
  comm.registrations.remove(pointer);
  return Status();
}

// Runs a call in which the peers take part. If its memory runs out, the communicator fails, so that
// no peer waits for this rank.
template <typename Body>
Status run(CommParts& comm, Call call, Body body) {
  HEP_TRY(comm.health->check());
  try {
    return body();
  } catch (const std::bad_alloc&) {
    comm.health->fail(hepErrorOutOfMemory, comm.rank,
                      std::string(name_of(call)) + ": out of host memory");
    return comm.health->check();
  }
}

}  // namespace

Status register_memory(CommParts& comm, void* pointer, size_t bytes) {
  return run(comm, Call::kRegister, [&] { return take_registration(comm, pointer, bytes); });
}

Status deregister_memory(CommParts& comm, void* pointer) {
  return run(comm, Call::kDeregister, [&] { return take_deregistration(comm, pointer); });
}

}  // namespace hep
