/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One Mixture-of-Experts layer on two ranks, from the first call to the last. The ranks are threads
 * of this program and run on the host backend, so that it works on any machine. Each expert doubles
 * its tokens, and a token's weights add up to one, so every token must come back doubled.
 */
#include "example.h"

enum { RANKS = 2, TOKENS = 64, HIDDEN = 256, EXPERTS = 8, TOP_K = 2 };

static void run_experts(bf16* rows, int64_t num_rows) {
  for (int64_t i = 0; i < num_rows * HIDDEN; ++i) rows[i] = to_bf16(2 * from_bf16(rows[i]));
}

static void moe_layer(int rank, const hepUniqueId_t* id, const bf16* x, const int32_t* experts,
                      const float* weights, bf16* out) {
  const hepStream_t stream = NULL; /* on a GPU: the stream of the layer */

  /* GUIDE: begin */
  /* Once: what the job looks like, and a communicator for it. Every rank does this. */
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendHost;
  config.max_tokens = TOKENS;
  config.hidden = HIDDEN;
  config.num_experts = EXPERTS;
  config.max_top_k = TOP_K;

  hepComm_t comm;
  hepRouting_t routing;
  CHECK(hepCommInitRank(&comm, RANKS, id, rank, &config));
  CHECK(hepRoutingCreate(&routing, comm, NULL));

  /* For each batch: tell the ranks which token goes to which expert. */
  hepUpdate_t update = HEP_UPDATE_INITIALIZER;
  update.indices = experts;
  update.num_tokens = TOKENS;
  update.top_k = TOP_K;
  CHECK(hepRoutingUpdate(routing, &update, stream));
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  CHECK(hepRoutingQuery(routing, &counts, stream));
  const int64_t capacity = counts.num_padded_rows;
  bf16* rows = capacity > 0 ? malloc(capacity * HIDDEN * sizeof(bf16)) : NULL;

  /* Tokens to experts: the rows arrive grouped by expert. */
  hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
  dispatch.layout = hepLayoutExpertMajor;
  dispatch.x = x;
  dispatch.weights = weights;
  dispatch.rows = rows;
  dispatch.capacity = capacity;
  CHECK(hepDispatch(routing, &dispatch, stream));

  run_experts(rows, capacity);

  /* Results back to tokens, weighted and summed. */
  hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
  combine.layout = hepLayoutExpertMajor;
  combine.weight_mode = hepWeightsDispatched;
  combine.y = rows;
  combine.capacity = capacity;
  combine.out = out;
  CHECK(hepCombine(routing, &combine, stream));

  /* Once: clean up. */
  free(rows);
  CHECK(hepRoutingDestroy(routing));
  CHECK(hepCommDestroy(comm));
  /* GUIDE: end */
}

static void run_rank(struct rank* self) {
  static bf16 x[RANKS][TOKENS * HIDDEN], out[RANKS][TOKENS * HIDDEN];
  int32_t experts[TOKENS * TOP_K];
  float weights[TOKENS * TOP_K];
  bf16* const mine = x[self->index];
  bf16* const result = out[self->index];

  for (int i = 0; i < TOKENS * HIDDEN; ++i) mine[i] = to_bf16((float)((i + self->index) % 31));
  for (int i = 0; i < TOKENS; ++i) {
    experts[i * TOP_K] = i % EXPERTS;
    experts[i * TOP_K + 1] = (i * 3 + 1) % EXPERTS;
    weights[i * TOP_K] = 0.25f;
    weights[i * TOP_K + 1] = 0.75f;
  }
  moe_layer(self->index, &self->id, mine, experts, weights, result);
  for (int i = 0; i < TOKENS * HIDDEN; ++i) {
    self->wrong += from_bf16(result[i]) != 2 * from_bf16(mine[i]);
  }
}

int main(void) {
  const int wrong = run_ranks(RANKS, run_rank);
  printf("%d ranks, %d tokens each, %d experts: %d wrong values\n", RANKS, TOKENS, EXPERTS, wrong);
  return wrong != 0;
}
