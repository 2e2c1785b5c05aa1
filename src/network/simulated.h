// SPDX-License-Identifier: Apache-2.0
// A network within one process, for tests: a thread copies what is written, late, out of order and
// with refusals, as a seed says. Ranks can be lost, and pairs of them cut off from each other.
#pragma once

#include <memory>
#include <vector>

#include "base/status.h"
#include "network/transport.h"

namespace hep {

struct SimulatedOptions {
  uint64_t seed = 1;
  int max_delay_us = 0;
  bool reorders = false;         // writes from one endpoint to another overtake each other
  int refused_per_thousand = 0;  // writes that find the transport busy
};

// Thread-safe. It outlives its last handle as long as one of its endpoints lives.
class SimulatedFabric {
 public:
  static Status create(const SimulatedOptions& options, std::shared_ptr<SimulatedFabric>* out);

  // The one that all communicators of the process share whose HEP_NETWORK has this seed. 0: nothing
  // is late, out of order or refused.
  static Status of_process(uint64_t seed, std::shared_ptr<SimulatedFabric>* out);

  ~SimulatedFabric();

  // An endpoint with these sections. Its end drops what it has under way, and fails what is under
  // way to it.
  static std::unique_ptr<Transport> open(const std::shared_ptr<SimulatedFabric>& fabric,
                                         const std::vector<NetworkSection>& sections);

  // As if the process of the endpoint had died: it receives and completes nothing more, and writes
  // to it fail.
  void lose(const NicAddress& endpoint);

  // Holds back all between two endpoints, or lets it go again.
  void cut(const NicAddress& a, const NicAddress& b, bool is_cut);

 private:
  friend class SimulatedTransport;
  class Wires;

  explicit SimulatedFabric(std::unique_ptr<Wires> wires);

  const std::unique_ptr<Wires> wires_;
};

}  // namespace hep
