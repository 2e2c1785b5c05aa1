// SPDX-License-Identifier: Apache-2.0
// What a program without libhybridep does on the host: it packs rows and exchanges them with
// MPI_Alltoallv (dispatch), or exchanges them back and adds them up (combine). One rank a process,
// BF16 rows, uniform random experts. Writes JSON lines with the time of each, and of a memcpy of
// the rows that a rank receives, by all ranks at once. usage: mpirun -np RANKS all_to_all TOKENS
// HIDDEN TOP_K EXPERTS ITERATIONS COMMIT
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { kMaxRanks = 64, kWarmup = 2 };

struct Job {
  int rank, ranks, tokens, hidden, top_k, experts, iterations;
  uint64_t random;
  uint16_t *x, *sent, *received, *out;
  int* rows;  // [ranks][tokens]: tokens that go to each rank, in order
  int send_counts[kMaxRanks], send_starts[kMaxRanks];
  int receive_counts[kMaxRanks], receive_starts[kMaxRanks];
  int sent_rows, received_rows;
  MPI_Datatype row;
};

static void* allocate(size_t bytes) {
  void* memory = malloc(bytes);
  if (memory == NULL) {
    fprintf(stderr, "no memory for %zu bytes\n", bytes);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  memset(memory, 0, bytes);
  return memory;
}

static uint64_t next_random(struct Job* job) {
  job->random = job->random * 6364136223846793005u + 1442695040888963407u;
  return job->random >> 33;
}

// Draws distinct experts for each token. A token goes once to each of their ranks.
static void choose_ranks(struct Job* job) {
  int* experts = allocate(job->experts * sizeof *experts);
  for (int e = 0; e < job->experts; ++e) experts[e] = e;
  for (int token = 0; token < job->tokens; ++token) {
    char goes_to[kMaxRanks] = {0};
    for (int k = 0; k < job->top_k; ++k) {
      const int other = k + (int)(next_random(job) % (uint64_t)(job->experts - k));
      const int expert = experts[other];
      experts[other] = experts[k];
      experts[k] = expert;
      goes_to[expert / (job->experts / job->ranks)] = 1;
    }
    for (int r = 0; r < job->ranks; ++r)
      if (goes_to[r]) job->rows[r * job->tokens + job->send_counts[r]++] = token;
  }
  free(experts);
}

static void prepare(struct Job* job) {
  const size_t row_bytes = job->hidden * sizeof(uint16_t);
  job->random = 1 + (uint64_t)job->rank;
  job->rows = allocate((size_t)job->ranks * job->tokens * sizeof *job->rows);
  choose_ranks(job);
  MPI_Alltoall(job->send_counts, 1, MPI_INT, job->receive_counts, 1, MPI_INT, MPI_COMM_WORLD);
  for (int r = 0; r < job->ranks; ++r) {
    job->send_starts[r] = job->sent_rows;
    job->sent_rows += job->send_counts[r];
    job->receive_starts[r] = job->received_rows;
    job->received_rows += job->receive_counts[r];
  }
  job->x = allocate(job->tokens * row_bytes);
  job->out = allocate(job->tokens * row_bytes);
  job->sent = allocate(job->sent_rows * row_bytes);
  job->received = allocate(job->received_rows * row_bytes);
  for (size_t i = 0; i < (size_t)job->tokens * job->hidden; ++i)
    job->x[i] = (uint16_t)(0x3f80 + next_random(job) % 128);
  MPI_Type_contiguous(job->hidden, MPI_UINT16_T, &job->row);
  MPI_Type_commit(&job->row);
}

static void dispatch(struct Job* job) {
  for (int r = 0; r < job->ranks; ++r)
    for (int i = 0; i < job->send_counts[r]; ++i)
      memcpy(job->sent + (size_t)(job->send_starts[r] + i) * job->hidden,
             job->x + (size_t)job->rows[r * job->tokens + i] * job->hidden,
             job->hidden * sizeof(uint16_t));
  MPI_Alltoallv(job->sent, job->send_counts, job->send_starts, job->row, job->received,
                job->receive_counts, job->receive_starts, job->row, MPI_COMM_WORLD);
}

static float to_float(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The rows of a token stand in ascending rank order, so one walk over the ranks finds them.
static void combine(struct Job* job) {
  MPI_Alltoallv(job->received, job->receive_counts, job->receive_starts, job->row, job->sent,
                job->send_counts, job->send_starts, job->row, MPI_COMM_WORLD);
  float* sum = allocate(job->hidden * sizeof *sum);
  int next[kMaxRanks] = {0};
  for (int token = 0; token < job->tokens; ++token) {
    for (int h = 0; h < job->hidden; ++h) sum[h] = 0;
    for (int r = 0; r < job->ranks; ++r) {
      if (next[r] == job->send_counts[r] || job->rows[r * job->tokens + next[r]] != token) continue;
      const uint16_t* row = job->sent + (size_t)(job->send_starts[r] + next[r]++) * job->hidden;
      for (int h = 0; h < job->hidden; ++h) sum[h] += to_float(row[h]);
    }
    uint16_t* out = job->out + (size_t)token * job->hidden;
    for (int h = 0; h < job->hidden; ++h) out[h] = to_bfloat16(sum[h]);
  }
  free(sum);
}

static void copy(struct Job* job) {
  memcpy(job->sent, job->received,
         (size_t)(job->sent_rows < job->received_rows ? job->sent_rows : job->received_rows) *
             job->hidden * sizeof(uint16_t));
}

static int ascending(const void* a, const void* b) {
  const double left = *(const double*)a, right = *(const double*)b;
  return (left > right) - (left < right);
}

// Returns the median of the iterations in microseconds. An iteration lasts as long as on its
// slowest rank.
static double median_us(struct Job* job, void (*call)(struct Job*)) {
  double* times = allocate(job->iterations * sizeof *times);
  for (int i = -kWarmup; i < job->iterations; ++i) {
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = MPI_Wtime();
    call(job);
    const double mine = (MPI_Wtime() - start) * 1e6;
    if (i >= 0) MPI_Allreduce(&mine, &times[i], 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  }
  qsort(times, job->iterations, sizeof *times, ascending);
  const double median = times[job->iterations / 2];
  free(times);
  return median;
}

// Returns how many sums are not those of the token's copies. Each copy is the row itself.
static long count_wrong(const struct Job* job) {
  long wrong = 0;
  int next[kMaxRanks] = {0};
  for (int token = 0; token < job->tokens; ++token) {
    int copies = 0;
    for (int r = 0; r < job->ranks; ++r) {
      if (next[r] == job->send_counts[r] || job->rows[r * job->tokens + next[r]] != token) continue;
      ++copies;
      ++next[r];
    }
    for (int h = 0; h < job->hidden; ++h) {
      const size_t i = (size_t)token * job->hidden + h;
      wrong += job->out[i] != to_bfloat16((float)copies * to_float(job->x[i]));
    }
  }
  return wrong;
}

static void report(const struct Job* job, const char* commit, const char* operation, double us,
                   double memcpy_us, long wrong) {
  long mine = job->received_rows, rows = 0, all_wrong = 0;
  MPI_Reduce(&mine, &rows, 1, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
  MPI_Reduce(&wrong, &all_wrong, 1, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
  if (job->rank != 0) return;
  const double bytes = (double)rows / job->ranks * job->hidden * sizeof(uint16_t);
  const time_t now = time(NULL);
  char date[16];
  strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
  printf(
      "{\"schema\":1,\"program\":\"peer\",\"date\":\"%s\",\"commit\":\"%s\","
      "\"library\":\"MPI_Alltoallv\",\"backend\":\"host\",\"ranks\":%d,\"tokens\":%d,"
      "\"hidden\":%d,\"top_k\":%d,\"experts\":%d,\"routing\":\"uniform\",\"type\":\"bf16\","
      "\"operation\":\"%s\",\"layout\":\"flat\",\"median_us\":%.1f,\"alg_gbps\":%.2f,"
      "\"ceiling_gbps\":%.2f,\"wrong\":%ld}\n",
      date, commit, job->ranks, job->tokens, job->hidden, job->top_k, job->experts, operation, us,
      bytes / us * 1e-3, bytes / memcpy_us * 1e-3, all_wrong);
}

int main(int argc, char** argv) {
  struct Job job = {0};
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &job.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &job.ranks);
  if (argc != 7 || job.ranks > kMaxRanks) {
    fprintf(stderr, "usage: all_to_all TOKENS HIDDEN TOP_K EXPERTS ITERATIONS COMMIT\n");
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  job.tokens = atoi(argv[1]);
  job.hidden = atoi(argv[2]);
  job.top_k = atoi(argv[3]);
  job.experts = atoi(argv[4]);
  job.iterations = atoi(argv[5]);
  prepare(&job);
  const double dispatch_us = median_us(&job, dispatch);
  const double combine_us = median_us(&job, combine);
  const long wrong = count_wrong(&job);
  const double memcpy_us = median_us(&job, copy);
  report(&job, argv[6], "dispatch", dispatch_us, memcpy_us, 0);
  report(&job, argv[6], "combine", combine_us, memcpy_us, wrong);
  MPI_Finalize();
  return wrong == 0 ? 0 : 1;
}
