/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A decoding step with two batches under way at once. Low-latency operations are called in halves,
 * and other work runs between the halves. The two ranks are threads of this program on the host
 * backend. Each expert doubles its tokens, and a token's weights add up to one, so every token must
 * come back doubled.
 */
#include "example.h"

enum { RANKS = 2, BATCHES = 2, TOKENS = 16, HIDDEN = 256, EXPERTS = 8, TOP_K = 2 };

/* A batch of a rank: its tokens, and room for rows of others. */
enum { CAPACITY = RANKS * TOKENS, LOCAL_EXPERTS = EXPERTS / RANKS };
struct batch {
  bf16 x[TOKENS * HIDDEN], out[TOKENS * HIDDEN];
  bf16 rows[LOCAL_EXPERTS * CAPACITY * HIDDEN];
  int32_t experts[TOKENS * TOP_K];
  float weights[TOKENS * TOP_K];
  int32_t expert_rows[LOCAL_EXPERTS];
};

static void run_experts(struct batch* batch) {
  for (int e = 0; e < LOCAL_EXPERTS; ++e) {
    bf16* const rows = batch->rows + e * CAPACITY * HIDDEN;
    for (int i = 0; i < batch->expert_rows[e] * HIDDEN; ++i)
      rows[i] = to_bf16(2 * from_bf16(rows[i]));
  }
}

static void decode(hepComm_t comm, struct batch* batches) {
  const hepStream_t stream = NULL; /* on a GPU: a stream */

  /* GUIDE: begin */
  /* Once, with low_latency_tokens in the config: a routing for each batch, on a lane of its own. */
  hepRouting_t routings[BATCHES];
  for (int b = 0; b < BATCHES; ++b) {
    hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
    place.mode = hepModeLowLatency;
    place.lane = b;
    CHECK(hepRoutingCreate(&routings[b], comm, &place));
  }

  /* Each step: update and dispatch in one call, in halves. The capacity takes whatever comes. */
  for (int b = 0; b < BATCHES; ++b) {
    hepUpdate_t update = HEP_UPDATE_INITIALIZER;
    update.indices = batches[b].experts;
    update.num_tokens = TOKENS;
    update.top_k = TOP_K;
    hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
    dispatch.update = &update;
    dispatch.layout = hepLayoutExpertPadded;
    dispatch.x = batches[b].x;
    dispatch.weights = batches[b].weights;
    dispatch.rows = batches[b].rows;
    dispatch.capacity = CAPACITY; /* rows an expert: RANKS * TOKENS */
    dispatch.expert_rows = batches[b].expert_rows;
    CHECK(hepDispatchSend(routings[b], &dispatch, stream));
  }
  /* ... attention of another batch ... */
  for (int b = 0; b < BATCHES; ++b) {
    CHECK(hepDispatchReceive(routings[b], stream));
    run_experts(&batches[b]);
    hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
    combine.layout = hepLayoutExpertPadded;
    combine.weight_mode = hepWeightsDispatched;
    combine.y = batches[b].rows;
    combine.capacity = CAPACITY;
    combine.out = batches[b].out;
    CHECK(hepCombineSend(routings[b], &combine, stream));
  }
  for (int b = 0; b < BATCHES; ++b) CHECK(hepCombineReceive(routings[b], stream));
  /* GUIDE: end */

  for (int b = 0; b < BATCHES; ++b) CHECK(hepRoutingDestroy(routings[b]));
}

static void run_rank(struct rank* self) {
  struct batch* const batches = calloc(BATCHES, sizeof *batches);
  if (batches == NULL) exit(1);
  for (int b = 0; b < BATCHES; ++b) {
    for (int i = 0; i < TOKENS * HIDDEN; ++i)
      batches[b].x[i] = to_bf16((float)((i + self->index + 7 * b) % 31));
    for (int i = 0; i < TOKENS; ++i) {
      batches[b].experts[i * TOP_K] = (i + b) % EXPERTS;
      batches[b].experts[i * TOP_K + 1] = (i + b + 3) % EXPERTS;
      batches[b].weights[i * TOP_K] = 0.25f;
      batches[b].weights[i * TOP_K + 1] = 0.75f;
    }
  }

  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendHost;
  config.max_tokens = TOKENS;
  config.low_latency_tokens = TOKENS;
  config.hidden = HIDDEN;
  config.num_experts = EXPERTS;
  config.max_top_k = TOP_K;
  hepComm_t comm;
  CHECK(hepCommInitRank(&comm, RANKS, &self->id, self->index, &config));
  decode(comm, batches);
  CHECK(hepCommDestroy(comm));

  for (int b = 0; b < BATCHES; ++b)
    for (int i = 0; i < TOKENS * HIDDEN; ++i)
      self->wrong += from_bf16(batches[b].out[i]) != 2 * from_bf16(batches[b].x[i]);
  free(batches);
}

int main(void) {
  const int wrong = run_ranks(RANKS, run_rank);
  printf("%d ranks, %d batches of %d tokens: %d wrong values\n", RANKS, BATCHES, TOKENS, wrong);
  return wrong != 0;
}
