// SPDX-License-Identifier: Apache-2.0
// The unique id by way of a caller's all-gather.
#include <cstdio>
#include <vector>

#include "bootstrap.h"
#include "layout.h"

namespace hep {
namespace {

// What every rank gives; only rank 0's id and error count.
struct Offer {
  int32_t rank;
  int32_t num_ranks;
  uint32_t result;  // hepResult_t
  char error[500];
  hepUniqueId_t id;
};

}  // namespace

Status unique_id_over_callback(hepAllGather_t all_gather, void* context, int rank, int num_ranks,
                               hepUniqueId_t* id) {
  if (!all_gather) return error(hepErrorInvalidArgument, "all_gather is NULL");
  if (num_ranks < 1 || num_ranks > kMaxRanks)
    return error(hepErrorInvalidArgument, "num_ranks is %d, but must be 1 to %d", num_ranks,
                 kMaxRanks);
  if (rank < 0 || rank >= num_ranks)
    return error(hepErrorInvalidArgument, "rank is %d, but must be 0 to %d", rank, num_ranks - 1);

  Offer mine{};
  mine.rank = rank;
  mine.num_ranks = num_ranks;
  if (rank == 0) {
    const Status created = create_unique_id(&mine.id);
    mine.result = created.result();
    std::snprintf(mine.error, sizeof mine.error, "%s", created.message().c_str());
  }
  std::vector<Offer> offers(num_ranks);
  if (const int code = all_gather(&mine, offers.data(), sizeof mine, context); code != 0)
    return error(hepErrorSystem, "rank %d: the all_gather callback returned %d", rank, code);

  for (int i = 0; i < num_ranks; ++i) {
    if (offers[i].rank != i)
      return error(hepErrorMismatch,
                   "rank %d: the all_gather callback delivered the data of rank %d in place %d",
                   rank, offers[i].rank, i);
    if (offers[i].num_ranks != num_ranks)
      return error(hepErrorMismatch,
                   "rank %d was told that there are %d ranks, rank %d that there are %d", i,
                   offers[i].num_ranks, rank, num_ranks);
  }
  Offer& first = offers[0];
  first.error[sizeof first.error - 1] = '\0';
  if (first.result > hepSuccess && first.result <= hepErrorInternal)
    return error(static_cast<hepResult_t>(first.result),
                 "rank %d: rank 0 could not open a rendezvous: %s", rank, first.error);
  *id = first.id;
  return Status();
}

}  // namespace hep
