// SPDX-License-Identifier: Apache-2.0
// A NIC as libfabric serves it: an endpoint of datagrams that arrive, with a completion queue, a
// table of addresses, and the sections registered.
#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "network/fabric_library.h"
#include "network/transport.h"

namespace hep {

// Closes an object of libfabric.
struct CloseFid {
  template <typename Object>
  void operator()(Object* object) const {
    ::fi_close(&object->fid);
  }
};
template <typename Object>
using Fid = std::unique_ptr<Object, CloseFid>;

class FabricTransport final : public Transport {
 public:
  // Opens the NIC that `info` tells of.
  static Status open(const FabricLibrary& library, const fi_info& info, int num_domains,
                     const std::vector<NetworkSection>& sections, std::unique_ptr<Transport>* out);

  const NicAddress& address() const override { return address_; }
  Status add_peer(int peer, const NicAddress& address) override;
  Outcome write(const NetworkWrite& write, int* code) override;
  int poll(NetworkEvent* events, int max) override;
  std::string text_of(int code) const override;

 private:
  struct Peer {
    fi_addr_t address = FI_ADDR_UNSPEC;
    std::vector<NicAddress::Section> sections;
  };

  FabricTransport(const FabricLibrary& library, const fi_info& info, int num_domains)
      : library_(library), info_(library.copy(&info)), contexts_(kMaxWrites), peers_(num_domains) {}

  Status open_endpoint(int num_domains);
  Status register_section(const NetworkSection& section);
  Status read_address();
  bool read_error(NetworkEvent* event);
  uint32_t tag_of(const void* context) const;
  Status check(const char* call, int64_t result) const;

  const FabricLibrary& library_;
  const FabricInfo info_;
  std::vector<fi_context2> contexts_;  // by tag, the library's while a write is under way
  std::vector<NetworkSection> sections_;
  std::vector<Peer> peers_;
  NicAddress address_{};

  // They are closed in reverse.
  Fid<fid_fabric> fabric_;
  Fid<fid_domain> domain_;
  Fid<fid_av> av_;
  Fid<fid_cq> cq_;
  std::vector<Fid<fid_mr>> regions_;  // as sections_
  Fid<fid_ep> endpoint_;
};

}  // namespace hep
