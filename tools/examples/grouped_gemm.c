/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FP8 tokens for a grouped GEMM, as inference and training in FP8 need them. Dispatch quantises
 * BF16 tokens to E4M3 on the way and places them as such a kernel reads them:
 *
 *   rows            [M][K] FP8, grouped by expert, each expert's block at a multiple of 128
 *   row_scales      [K / 128][stride] FP32, column-major, columns at multiples of 16 bytes (TMA)
 *   expert_offsets  [local experts + 1] beginning of each expert's block, in device memory
 *
 * M is the routing's num_padded_rows, K is hidden. An expert is one matrix in FP8 with a scale for
 * each 128 x 128 elements. The GEMM here is a plain loop for the host backend; on a GPU the kernel
 * takes the same pointers. The results are compared in double precision with those of tokens that
 * were never quantised, element by element, within a bound that `dense` derives.
 */
#include <math.h>

#include "example.h"

enum { RANKS = 2, TOKENS = 48, TOP_K = 2, EXPERTS = 8, HIDDEN = 256 };
enum { BLOCK = 128, BLOCKS = HIDDEN / BLOCK, LOCAL_EXPERTS = EXPERTS / RANKS, ALIGNMENT = 128 };

typedef uint8_t e4m3;

/* ------------------------------------------------------------------------------------ numbers */

static float from_e4m3(e4m3 code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude =
      exponent == 0 ? ldexpf((float)mantissa, -9) : ldexpf((float)(8 + mantissa), exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

static uint32_t random_bits(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

/* --------------------------------------------------------------------------------- the problem */

struct expert {
  e4m3 weights[HIDDEN * HIDDEN]; /* [N][K] */
  float scales[BLOCKS * BLOCKS]; /* [N / 128][K / 128] */
};

struct batch {
  bf16 x[TOKENS][HIDDEN];
  int32_t experts[TOKENS][TOP_K];
  float weights[TOKENS][TOP_K];
};

static struct expert all_experts[EXPERTS];
static struct batch batches[RANKS]; /* by rank */

/* Weights are positive and a token's elements have one sign. Otherwise sums could cancel, and the
   bound of the error could be as large as the sum. */
static void make_problem(void) {
  uint32_t random = 1;
  for (int e = 0; e < EXPERTS; ++e) {
    for (int i = 0; i < HIDDEN * HIDDEN; ++i) /* magnitudes from 2^-4 to 2^4 */
      all_experts[e].weights[i] = (e4m3)((random_bits(&random) & 0x3f) + 0x18);
    for (int i = 0; i < BLOCKS * BLOCKS; ++i)
      all_experts[e].scales[i] = (float)(1 + random_bits(&random) % 100) / 1000;
  }
  for (int rank = 0; rank < RANKS; ++rank) {
    struct batch* const batch = &batches[rank];
    for (int t = 0; t < TOKENS; ++t) {
      for (int h = 0; h < HIDDEN;
           ++h) { /* blocks of other magnitudes, with small numbers in them */
        const float value = (float)(random_bits(&random) % 1000 + 1) / (t % 2 == 0 ? 1000 : -1000);
        batch->x[t][h] = to_bf16(ldexpf(value, (t + h / BLOCK * 5) % 11 - 5 - h % 16));
      }
      const int first = (int)(random_bits(&random) % EXPERTS);
      batch->experts[t][0] = first;
      batch->experts[t][1] = t % 7 == 0 ? -1 : (first + 1 + t % (EXPERTS - 1)) % EXPERTS;
      batch->weights[t][0] = (float)(random_bits(&random) % 1000) / 1000;
      batch->weights[t][1] = 1 - batch->weights[t][0];
    }
  }
}

/* ------------------------------------------------------------------------------- grouped GEMM */

/* y [M][N] in BF16: each expert's rows times its matrix. Like a kernel it computes whole blocks:
   padding rows are zeros and give zeros. */
static void grouped_gemm(const e4m3* rows, const float* row_scales, int64_t stride,
                         const int32_t* expert_offsets, const struct expert* experts, bf16* y) {
  for (int e = 0; e < LOCAL_EXPERTS; ++e)
    for (int64_t m = expert_offsets[e]; m < expert_offsets[e + 1]; ++m) {
      float a[HIDDEN];
      for (int k = 0; k < HIDDEN; ++k) a[k] = from_e4m3(rows[m * HIDDEN + k]);
      for (int n = 0; n < HIDDEN; ++n) {
        float sum = 0;
        for (int block = 0; block < BLOCKS; ++block) {
          float of_block = 0;
          for (int k = block * BLOCK; k < (block + 1) * BLOCK; ++k)
            of_block += a[k] * from_e4m3(experts[e].weights[n * HIDDEN + k]);
          sum += of_block * row_scales[block * stride + m] *
                 experts[e].scales[n / BLOCK * BLOCKS + block];
        }
        y[m * HIDDEN + n] = to_bf16(sum);
      }
    }
}

/* ------------------------------------------------------------------------------------- checks */

static const double kBf16 = 1.0 / 256; /* what rounding to BF16 changes at most, relatively */

struct result {
  double value[HIDDEN];
  double bound[HIDDEN]; /* how far the result in BF16 may be from it */
};

/*
 * An expert's output for a token that was never quantised.
 *
 * E4M3 has 3 bits of mantissa. Rounding to nearest changes a normal number by at most 2^-4 of it,
 * and a number below 2^-6, where the numbers are 2^-9 apart, by at most 2^-10. With scale s the
 * product x = s * q is off by at most 2^-4 |x| + 2^-10 s, and the sum over k by at most the sum of
 * |w| times that. Fewer than 2^9 roundings in FP32, of 2^-24 each, add less than 2^-15 of the sum
 * of |w x|.
 * Then y is rounded to BF16.
 */
static void dense(const bf16* x, const struct expert* expert, struct result* y) {
  for (int n = 0; n < HIDDEN; ++n) {
    double sum = 0, error = 0;
    for (int block = 0; block < BLOCKS; ++block) {
      double largest = 0;
      for (int k = block * BLOCK; k < (block + 1) * BLOCK; ++k)
        largest = fmax(largest, fabs(from_bf16(x[k])));
      const double x_scale = largest / 448, w_scale = expert->scales[n / BLOCK * BLOCKS + block];
      for (int k = block * BLOCK; k < (block + 1) * BLOCK; ++k) {
        const double w = w_scale * from_e4m3(expert->weights[n * HIDDEN + k]),
                     value = from_bf16(x[k]);
        sum += w * value;
        error += fabs(w) * ((ldexp(1, -4) + ldexp(1, -15)) * fabs(value) + ldexp(1, -10) * x_scale);
      }
    }
    y->value[n] = sum;
    y->bound[n] = error + kBf16 * (fabs(sum) + error);
  }
}

static double worst[RANKS]; /* by rank: the largest error, as a part of its bound */

static void compare(struct rank* self, const bf16* actual, const struct result* expected) {
  for (int n = 0; n < HIDDEN; ++n) {
    const double error = fabs(from_bf16(actual[n]) - expected->value[n]);
    self->wrong += !(error <= expected->bound[n]); /* NaN is wrong, too */
    worst[self->index] = fmax(worst[self->index], error / expected->bound[n]);
  }
}

/* Each row of y belongs to the token that its source and token name. Padding has none and stays
   zero. */
static void check_rows(struct rank* self, const bf16* y, const int32_t* expert_offsets,
                       const int32_t* sources, const int32_t* tokens) {
  for (int e = 0; e < LOCAL_EXPERTS; ++e)
    for (int64_t m = expert_offsets[e]; m < expert_offsets[e + 1]; ++m) {
      struct result expected = {{0}, {0}};
      if (sources[m] >= 0)
        dense(batches[sources[m]].x[tokens[m]], &all_experts[self->index * LOCAL_EXPERTS + e],
              &expected);
      compare(self, &y[m * HIDDEN], &expected);
    }
}

/*
 * The layer's output is the weighted sum over a token's experts. On the way back each rank's part
 * is rounded to BF16, and so is the sum of the parts. The bound allows three roundings of 2^-8,
 * which covers these two and those in FP32.
 */
static void check_out(struct rank* self, bf16 (*out)[HIDDEN]) {
  const struct batch* const batch = &batches[self->index];
  for (int t = 0; t < TOKENS; ++t) {
    struct result sum = {{0}, {0}}, y;
    for (int k = 0; k < TOP_K; ++k) {
      if (batch->experts[t][k] < 0) continue;
      dense(batch->x[t], &all_experts[batch->experts[t][k]], &y);
      for (int n = 0; n < HIDDEN; ++n) {
        const double weight = batch->weights[t][k];
        sum.value[n] += weight * y.value[n];
        sum.bound[n] += weight * (y.bound[n] + 3 * kBf16 * (fabs(y.value[n]) + y.bound[n]));
      }
    }
    compare(self, out[t], &sum);
  }
}

/* -------------------------------------------------------------------------------------- layer */

/* NULL for nothing, as dispatch and combine want it. What malloc gives is aligned to 16 bytes. */
static void* allocate(int64_t bytes) {
  void* const memory = bytes > 0 ? malloc((size_t)bytes) : NULL;
  if (bytes > 0 && memory == NULL) {
    perror("malloc");
    exit(1);
  }
  return memory;
}

static void moe_layer(struct rank* self, hepComm_t comm) {
  const struct batch* const batch = &batches[self->index];
  const hepStream_t stream = NULL; /* on a GPU: the stream of the layer */

  /* 128 rows are what a block of the GEMM takes, so that none has rows of two experts. */
  hepRoutingConfig_t routing_config = HEP_ROUTING_CONFIG_INITIALIZER;
  routing_config.alignment = ALIGNMENT;
  hepRouting_t routing;
  CHECK(hepRoutingCreate(&routing, comm, &routing_config));
  hepUpdate_t update = HEP_UPDATE_INITIALIZER;
  update.indices = batch->experts;
  update.num_tokens = TOKENS;
  update.top_k = TOP_K;
  CHECK(hepRoutingUpdate(routing, &update, stream));
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  CHECK(hepRoutingQuery(routing, &counts, stream));

  /* A column of scales is a multiple of 16 bytes long: of 4 floats. */
  const int64_t capacity = counts.num_padded_rows, stride = (capacity + 3) / 4 * 4;
  e4m3* const rows = allocate(capacity * HIDDEN);
  float* const row_scales = allocate(BLOCKS * stride * sizeof(float));
  int32_t* const sources = allocate(capacity * sizeof(int32_t));
  int32_t* const tokens = allocate(capacity * sizeof(int32_t));
  bf16* const y = allocate(capacity * HIDDEN * sizeof(bf16));
  static bf16 all_out[RANKS][TOKENS][HIDDEN];
  bf16(*const out)[HIDDEN] = all_out[self->index];

  hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
  dispatch.layout = hepLayoutExpertMajor;
  dispatch.x = batch->x;
  dispatch.weights = &batch->weights[0][0];
  dispatch.quantize = hepQuantizeFloat32;
  dispatch.rows = rows;
  dispatch.capacity = capacity;
  dispatch.row_scales = row_scales;
  dispatch.row_scales_stride = stride;
  dispatch.scale_element_bytes = sizeof(float);
  dispatch.row_sources = sources; /* for the check alone */
  dispatch.row_tokens = tokens;
  CHECK(hepDispatch(routing, &dispatch, stream));

  /* The offsets stay on the device: a kernel reads them there, and no call waits for it. */
  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  CHECK(hepRoutingGetView(routing, &view));
  grouped_gemm(rows, row_scales, stride, view.expert_offsets,
               &all_experts[self->index * LOCAL_EXPERTS], y);

  hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
  combine.layout = hepLayoutExpertMajor;
  combine.weight_mode = hepWeightsDispatched;
  combine.y = y;
  combine.capacity = capacity;
  combine.out = out;
  CHECK(hepCombine(routing, &combine, stream));

  check_rows(self, y, view.expert_offsets, sources, tokens);
  check_out(self, out);
  CHECK(hepRoutingDestroy(routing));
  free(rows);
  free(row_scales);
  free(sources);
  free(tokens);
  free(y);
}

static void run_rank(struct rank* self) {
  /* FP8 goes out, and BF16 comes back: combine_type is BF16 unless told otherwise. */
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendHost;
  config.type = hepTypeFloat8E4M3;
  config.scale_bytes = BLOCKS * sizeof(float);
  config.max_tokens = TOKENS;
  config.hidden = HIDDEN;
  config.num_experts = EXPERTS;
  config.max_top_k = TOP_K;
  hepComm_t comm;
  CHECK(hepCommInitRank(&comm, RANKS, &self->id, self->index, &config));
  moe_layer(self, comm);
  CHECK(hepCommDestroy(comm));
}

int main(void) {
  make_problem();
  const int wrong = run_ranks(RANKS, run_rank);
  double largest = 0;
  for (int rank = 0; rank < RANKS; ++rank) largest = fmax(largest, worst[rank]);
  printf(
      "%d ranks, %d tokens each, %d experts in FP8: %d wrong values, largest error %.0f %% of its "
      "bound\n",
      RANKS, TOKENS, EXPERTS, wrong, 100 * largest);
  return wrong != 0;
}
