/* SPDX-License-Identifier: Apache-2.0 */
/* What the examples in C share: a check of each call, BF16, and ranks as threads of one program. */
#ifndef HEP_EXAMPLE_H
#define HEP_EXAMPLE_H

#include <hybridep.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(call)                                            \
  do {                                                         \
    if ((call) != hepSuccess) {                                \
      fprintf(stderr, "%s\n  %s\n", #call, hepGetLastError()); \
      exit(1);                                                 \
    }                                                          \
  } while (0)

/* BF16 is the upper half of a float. */
typedef uint16_t bf16;

static inline bf16 to_bf16(float value) { /* to nearest even */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float from_bf16(bf16 value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

struct rank {
  int index;
  hepUniqueId_t id;
  void (*run)(struct rank* self);
  int wrong; /* values; must stay 0 */
};

static inline void* run_rank_thread(void* argument) {
  struct rank* const self = argument;
  self->run(self);
  return NULL;
}

/* Runs each rank on a thread of its own. Returns how many values are wrong on all ranks. */
static inline int run_ranks(int num_ranks, void (*run)(struct rank* self)) {
  struct rank* const ranks = calloc((size_t)num_ranks, sizeof *ranks);
  pthread_t* const threads = calloc((size_t)num_ranks, sizeof *threads);
  hepUniqueId_t id;
  int wrong = 0;

  if (ranks == NULL || threads == NULL) exit(1);
  CHECK(hepGetUniqueId(&id)); /* on one rank; the others get a copy of it by any means */
  for (int rank = 0; rank < num_ranks; ++rank) {
    ranks[rank].index = rank;
    ranks[rank].id = id;
    ranks[rank].run = run;
    if (pthread_create(&threads[rank], NULL, run_rank_thread, &ranks[rank]) != 0) exit(1);
  }
  for (int rank = 0; rank < num_ranks; ++rank) {
    pthread_join(threads[rank], NULL);
    wrong += ranks[rank].wrong;
  }
  free(threads);
  free(ranks);
  return wrong;
}

#endif
