// SPDX-License-Identifier: Apache-2.0
#include "network/fabric_transport.h"

#include <rdma/fi_errno.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "base/log.h"
#include "network/sections.h"

namespace hep {
namespace {

constexpr uint32_t kNoTag = ~uint32_t{0};

// Codes that are not of libfabric, whose codes are positive.
enum Code : int { kNotTold = -1, kOutsideOfSections = -2 };

}  // namespace

Status FabricTransport::open(const FabricLibrary& library, const fi_info& info, int num_domains,
                             const std::vector<NetworkSection>& sections,
                             std::unique_ptr<Transport>* out) {
  std::unique_ptr<FabricTransport> nic(new FabricTransport(library, info, num_domains));
  std::snprintf(nic->address_.nic, sizeof nic->address_.nic, "%s", info.domain_attr->name);
  HEP_TRY(nic->open_endpoint(num_domains));
  for (const NetworkSection& section : sections) HEP_TRY(nic->register_section(section));
  HEP_TRY(nic->read_address());
  *out = std::move(nic);
  return Status();
}

Status FabricTransport::check(const char* call, int64_t result) const {
  if (result >= 0) return Status();
  const auto code = static_cast<int>(-result);
  return error(code == FI_ENOMEM ? hepErrorOutOfMemory : hepErrorNetwork, "NIC %s: %s: %s",
               address_.nic, call, library_.text_of(code).c_str());
}

Status FabricTransport::open_endpoint(int num_domains) {
  fid_fabric* fabric = nullptr;
  HEP_TRY(library_.open_fabric(*info_, &fabric));
  fabric_.reset(fabric);
  fid_domain* domain = nullptr;
  HEP_TRY(check("fi_domain", ::fi_domain(fabric, info_.get(), &domain, nullptr)));
  domain_.reset(domain);

  fi_av_attr av_attributes{};
  av_attributes.type = info_->domain_attr->av_type;
  av_attributes.count = static_cast<size_t>(num_domains);
  fid_av* av = nullptr;
  HEP_TRY(check("fi_av_open", ::fi_av_open(domain, &av_attributes, &av, nullptr)));
  av_.reset(av);

  fi_cq_attr cq_attributes{};
  cq_attributes.format = FI_CQ_FORMAT_DATA;
  cq_attributes.wait_obj = FI_WAIT_NONE;
  cq_attributes.size = std::max<size_t>(info_->tx_attr->size + info_->rx_attr->size,
                                        2 * kTagsOfAPeer * static_cast<size_t>(num_domains));
  fid_cq* cq = nullptr;
  HEP_TRY(check("fi_cq_open", ::fi_cq_open(domain, &cq_attributes, &cq, nullptr)));
  cq_.reset(cq);

  fid_ep* endpoint = nullptr;
  HEP_TRY(check("fi_endpoint", ::fi_endpoint(domain, info_.get(), &endpoint, nullptr)));
  endpoint_.reset(endpoint);
  HEP_TRY(check("fi_ep_bind", ::fi_ep_bind(endpoint, &av->fid, 0)));
  HEP_TRY(check("fi_ep_bind", ::fi_ep_bind(endpoint, &cq->fid, FI_TRANSMIT | FI_RECV)));
  return check("fi_enable", ::fi_enable(endpoint));
}

Status FabricTransport::register_section(const NetworkSection& section) {
  const iovec range{section.address, section.bytes};
  fi_mr_attr attributes{};
  attributes.mr_iov = &range;
  attributes.iov_count = 1;
  attributes.access = FI_WRITE | FI_REMOTE_WRITE;
  attributes.requested_key = sections_.size() + 1;
  attributes.iface = section.device < 0 ? FI_HMEM_SYSTEM : FI_HMEM_CUDA;
  attributes.device.cuda = std::max(section.device, 0);
  fid_mr* region = nullptr;
  if (const int result = ::fi_mr_regattr(domain_.get(), &attributes, 0, &region); result != 0) {
    const Status failed = check("fi_mr_regattr", result);
    return error(failed.result(), "%s, for %llu bytes of %s memory", failed.message().c_str(),
                 static_cast<unsigned long long>(section.bytes),
                 section.device < 0 ? "host" : "device");
  }
  regions_.emplace_back(region);
  sections_.push_back(section);
  const bool virtual_addresses = (info_->domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0;
  address_.sections[address_.num_sections++] = {
      section.offset, section.bytes,
      virtual_addresses ? reinterpret_cast<uint64_t>(section.address) : 0, ::fi_mr_key(region)};
  return Status();
}

Status FabricTransport::read_address() {
  size_t bytes = sizeof address_.bytes;
  HEP_TRY(check("fi_getname", ::fi_getname(&endpoint_->fid, address_.bytes, &bytes)));
  address_.num_bytes = static_cast<uint32_t>(bytes);
  return Status();
}

Status FabricTransport::add_peer(int peer, const NicAddress& address) {
  if (address.num_bytes > sizeof address.bytes || address.num_sections > kMaxNetworkSections)
    return error(hepErrorInternal, "NIC %s: the address of a peer is damaged", address_.nic);
  Peer& added = peers_[peer];
  added.sections.assign(address.sections, address.sections + address.num_sections);
  const int inserted = ::fi_av_insert(av_.get(), address.bytes, 1, &added.address, 0, nullptr);
  if (inserted == 1) return Status();
  return check("fi_av_insert", inserted < 0 ? inserted : -FI_EINVAL);
}

// A write without bytes names valid addresses all the same, which some providers check.
Transport::Outcome FabricTransport::write(const NetworkWrite& write, int* code) {
  const Peer& peer = peers_[write.peer];
  const int own = find_section(sections_, write.from, write.bytes);
  const int theirs = find_section(peer.sections, write.to, write.bytes);
  *code = kOutsideOfSections;
  if (own < 0 || theirs < 0) return Outcome::kFailed;
  const uint64_t skip = write.bytes == 0 ? 0 : write.from - sections_[own].offset;
  const uint64_t remote_skip = write.bytes == 0 ? 0 : write.to - peer.sections[theirs].offset;
  const ssize_t result =
      ::fi_writedata(endpoint_.get(), static_cast<char*>(sections_[own].address) + skip,
                     write.bytes, ::fi_mr_desc(regions_[own].get()), write.immediate, peer.address,
                     peer.sections[theirs].address + remote_skip, peer.sections[theirs].key,
                     &contexts_[write.tag]);
  if (result == 0) return Outcome::kTaken;
  if (result == -FI_EAGAIN) return Outcome::kBusy;
  *code = static_cast<int>(-result);
  return Outcome::kFailed;
}

int FabricTransport::poll(NetworkEvent* events, int max) {
  std::array<fi_cq_data_entry, 64> entries;
  const size_t wanted = std::min(entries.size(), static_cast<size_t>(max));
  const ssize_t count = ::fi_cq_read(cq_.get(), entries.data(), wanted);
  if (count == -FI_EAGAIN || count == -FI_EINTR) return 0;
  if (count == -FI_EAVAIL) return read_error(events) ? 1 : 0;
  if (count < 0) {
    events[0] = {NetworkEvent::Kind::kBroken, 0, 0, static_cast<int>(-count)};
    return 1;
  }
  for (ssize_t i = 0; i < count; ++i) {
    const fi_cq_data_entry& entry = entries[i];
    if ((entry.flags & FI_REMOTE_CQ_DATA) != 0)
      events[i] = {NetworkEvent::Kind::kArrived, 0, static_cast<uint32_t>(entry.data), 0};
    else
      events[i] = {NetworkEvent::Kind::kCompleted, tag_of(entry.op_context), 0, 0};
  }
  return static_cast<int>(count);
}

// An error that belongs to no write is that of a peer whose connection ends. Whoever misses
// something of it hears of its end by another way.
bool FabricTransport::read_error(NetworkEvent* event) {
  fi_cq_err_entry entry{};
  if (::fi_cq_readerr(cq_.get(), &entry, 0) != 1) return false;
  const int code = entry.err != 0 ? entry.err : kNotTold;
  const uint32_t tag = tag_of(entry.op_context);
  if (tag == kNoTag) {
    log_message(hepLogInfo, "NIC %s: an error that is no write's: %s", address_.nic,
                text_of(code).c_str());
    return false;
  }
  *event = {NetworkEvent::Kind::kFailed, tag, 0, code};
  return true;
}

uint32_t FabricTransport::tag_of(const void* context) const {
  const auto* const place = static_cast<const fi_context2*>(context);
  if (place < contexts_.data() || place >= contexts_.data() + contexts_.size()) return kNoTag;
  return static_cast<uint32_t>(place - contexts_.data());
}

std::string FabricTransport::text_of(int code) const {
  if (code == kNotTold) return "libfabric tells no reason";
  if (code == kOutsideOfSections) return "the write is outside of the sections";
  return library_.text_of(code);
}

}  // namespace hep
