// SPDX-License-Identifier: Apache-2.0
// The unique id travels over a caller's all-gather.
#include <cstdio>
#include <vector>

#include "base/result.h"
#include "bootstrap/bootstrap.h"
#include "config/ranks.h"
#include "protocol/shape.h"

namespace hep {
namespace {

// Every rank gives an offer. Only rank 0's id counts.
struct Offer {
  int32_t rank;
  int32_t num_ranks;
  uint32_t result;  // hepResult_t
  char error[500];
  hepUniqueId_t id;
};

Offer make_offer(int rank, int num_ranks, const Status& own) {
  Offer offer{};
  offer.rank = rank;
  offer.num_ranks = num_ranks;
  Status status = own;
  if (status.ok() && rank == 0) status = create_unique_id(&offer.id);
  offer.result = status.result();
  std::snprintf(offer.error, sizeof offer.error, "%s", status.message().c_str());
  return offer;
}

// Owns the hub that an offer has opened, if any. Without a decline it would listen for long after
// the offer came to nothing.
class OpenHub {
 public:
  explicit OpenHub(const Offer& offer)
      : offer_(offer), declines_(offer.rank == 0 && offer.result == hepSuccess) {}
  OpenHub(const OpenHub&) = delete;
  OpenHub& operator=(const OpenHub&) = delete;
  ~OpenHub() {
    if (declines_) decline(offer_.id, offer_.rank, offer_.num_ranks);
  }

  void keep() { declines_ = false; }

 private:
  const Offer& offer_;
  bool declines_;
};

// `sender` is the rank whose offer this must be.
Status check_offer(Offer& offer, int sender, int rank, int num_ranks) {
  offer.error[sizeof offer.error - 1] = '\0';
  if (offer.result != hepSuccess)
    return error(failure_of(offer.result), "rank %d: rank %d could not take part: %s", rank, sender,
                 offer.error);
  if (offer.rank != sender)
    return error(
        hepErrorMismatch,
        "rank %d: the all_gather callback delivered the data of rank %d as that of rank %d", rank,
        offer.rank, sender);
  if (offer.num_ranks != num_ranks)
    return error(hepErrorMismatch,
                 "rank %d was told that there are %d ranks, rank %d that there are %d", sender,
                 offer.num_ranks, rank, num_ranks);
  return Status();
}

}  // namespace

Status unique_id_over_callback(hepAllGather_t all_gather, void* context, int rank, int num_ranks,
                               const Status& own, hepUniqueId_t* id) {
  if (!all_gather) return error(hepErrorInvalidArgument, "all_gather is NULL");
  HEP_TRY(check_num_ranks(num_ranks));
  const Offer mine = make_offer(rank, num_ranks, own);
  OpenHub hub(mine);
  // There is room for the most ranks, because this rank may have been told too small a number.
  std::vector<Offer> offers(kMaxRanks);
  const int code = all_gather(&mine, offers.data(), sizeof mine, context);
  HEP_TRY(own);
  if (code != 0)
    return error(hepErrorSystem, "rank %d: the all_gather callback returned %d", rank, code);
  for (int sender = 0; sender < num_ranks; ++sender)
    HEP_TRY(check_offer(offers[sender], sender, rank, num_ranks));
  *id = offers[0].id;
  hub.keep();
  return Status();
}

}  // namespace hep
