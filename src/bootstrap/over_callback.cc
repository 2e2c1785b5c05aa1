// SPDX-License-Identifier: Apache-2.0
// The unique id by way of a caller's all-gather.
#include <cstdio>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "layout.h"
#include "ranks.h"
#include "result.h"

namespace hep {
namespace {

// What every rank gives; only rank 0's id counts.
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

// The hub that an offer has opened, if any; it would listen for long if nothing came of the offer.
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

// `place` is where the offer lies among all.
Status check_offer(Offer& offer, int place, int rank, int num_ranks) {
  offer.error[sizeof offer.error - 1] = '\0';
  if (offer.result != hepSuccess)
    return error(failure_of(offer.result), "rank %d: rank %d could not take part: %s", rank, place,
                 offer.error);
  if (offer.rank != place)
    return error(hepErrorMismatch,
                 "rank %d: the all_gather callback delivered the data of rank %d in place %d", rank,
                 offer.rank, place);
  if (offer.num_ranks != num_ranks)
    return error(hepErrorMismatch,
                 "rank %d was told that there are %d ranks, rank %d that there are %d", place,
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
  // Of the largest size, because this rank may have been told too small a number.
  std::vector<Offer> offers(kMaxRanks);
  const int code = all_gather(&mine, offers.data(), sizeof mine, context);
  HEP_TRY(own);
  if (code != 0)
    return error(hepErrorSystem, "rank %d: the all_gather callback returned %d", rank, code);
  for (int place = 0; place < num_ranks; ++place)
    HEP_TRY(check_offer(offers[place], place, rank, num_ranks));
  *id = offers[0].id;
  hub.keep();
  return Status();
}

}  // namespace hep
