/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libhybridep: expert-parallel all-to-all for Mixture-of-Experts layers.
 *
 * INTRODUCTION
 *
 * The tokens of a batch live on the ranks that computed them, the experts on the ranks that host
 * them. `hepDispatch` brings every token to the ranks of its selected experts; `hepCombine` brings
 * the experts' results back, weighted and summed, in the tokens' own order.
 *
 * LIFE CYCLE
 *
 *   1. Describe the job in a `hepConfig_t` and create a communicator on every rank, with one of
 *      the four `hepCommInit...` functions.
 *   2. Create a routing (`hepRoutingCreate`), one for each batch that is in flight.
 *   3. For every batch: `hepRoutingUpdate` with the router's top-k indices, then any number of
 *      `hepDispatch` and `hepCombine` calls on that routing.
 *   4. Destroy the routings, then the communicators.
 *
 * WORDS AND SHAPES
 *
 *   rank         member of a communicator, 0 <= rank < R, bound to one device
 *   E, EL        experts in all, and hosted by each rank: EL = E / R; rank e / EL hosts expert e
 *   T, K         tokens that a rank dispatches and selections of a token, in the routing's latest update
 *   H            hidden size
 *   selection    a pair (token, k) whose expert id is not -1
 *   flat row     one row per (source rank, token) that selected at least one expert of this rank,
 *                ordered by (source rank, token)
 *   expert row   one row per selection of an expert of this rank, ordered by (local expert,
 *                source rank, token, k)
 *   place        the index of a row in the output of a layout
 *   device memory   of the rank's GPU on the cuda backend, and not managed memory, which is refused because
 *                its pages may lie on the host; any memory of the process on the host backend
 *
 * Placement is a pure function of the routing: two runs give the same bytes, on every backend and
 * with any number of SMs. Matrices are dense and row-major; shapes below are written [rows][columns].
 *
 * STREAMS
 *
 * On the cuda backend a call that takes a stream only enqueues work on it: it never waits for the
 * device, and it can be captured into a CUDA graph (`hepRoutingQuery` is the exception to both). A
 * replay has the pointers and sizes (T, K, capacities) of its capture; the contents may be others each
 * time. A call is made for T and K of the latest update that was called, captured or not, on its routing.
 * The device compares them with those of the update that was executed. If they differ, the communicator
 * fails with hepErrorInvalidUsage before a row moves, and `hepGetLastError` names both.
 * On the host backend the stream must be NULL and the work is done when the call returns, so every
 * rank needs its own thread or process.
 *
 * LANES
 *
 * A lane is a sequence of operations (updates, dispatches and combines). Every routing lives on one:
 * on one of the config's `lanes`, or, if it is a low-latency routing, on one of the four low-latency
 * lanes. All ranks issue the operations of one lane in the same order, and the caller orders them on the
 * device: on one stream, or on several that are chained by events. A call that is refused has not
 * happened: it must be made again before the next of its lane, or the peers take the next for it.
 *
 * Operations of different lanes may overlap: on the cuda backend on different streams, on the host
 * backend on different threads, and on both by their halves (`hepDispatchSend`). Each rank may then issue
 * them in an order of its own, as long as no two ranks wait for what the other one has yet to issue: first
 * halves before second ones are always safe.
 *
 * On the cuda backend, operations that may run at the same time must find room on the device together. A block
 * may occupy a whole SM until its operation ends. It waits for the other blocks of its operation, and for the
 * same operation on the peers. So the rule is: add up the largest grids of all lanes, and of all communicators
 * of the process, whose operations may run at the same time; the sum must not exceed the SMs that they can use.
 * The largest grid is that of `hepLimits_t`: the most of routing_blocks, dispatch_blocks and combine_blocks; of a
 * low-latency lane it is low_latency_blocks. The SMs are those of the device, or of the green context or the MPS
 * share. If the rule is broken, one rank may begin with one operation and another rank with another, and both
 * wait until `timeout_ms`. Smaller budgets (`sm_budget`, `low_latency_blocks`) keep it, and so does a common
 * stream for operations that do not fit together. Creation warns, at level hepLogWarning, when all lanes of the
 * communicator together exceed the SMs of the device; `hep_info --low-latency-tokens N` prints their sum.
 * Streams may also share a hardware queue, and then run one after the other (CUDA_DEVICE_MAX_CONNECTIONS): where
 * lanes have streams of their own, all ranks best issue all operations in the same order.
 *
 * Several ranks may share a device, for tests. Each then needs a stream of its own, not the legacy
 * default stream; their blocks must find room on the device together; and since CUDA does not promise
 * that a kernel starts while others wait, all ranks enqueue an operation before any of them enqueues
 * more.
 *
 * THREADS
 *
 * Different communicators may be used from different threads at once, and so may the routings of
 * different lanes of one communicator. Otherwise calls on one communicator and its routings are made by
 * one thread at a time, except `hepCommAbort`, `hepCommGetAsyncError` and `hepCommGetFailure`, which any
 * thread may call at any time before `hepCommDestroy`.
 *
 * ERRORS
 *
 * Every function returns a `hepResult_t`, checks its arguments before it enqueues anything, and
 * leaves a sentence with names and numbers for `hepGetLastError`. What a kernel finds later is
 * reported by `hepCommGetAsyncError`. Peers do not learn of a refused call: a rank that cannot make it
 * again ends its part with `hepCommAbort` or `hepCommDestroy`.
 *
 * FAILURES
 *
 * No wait for a peer is endless. It ends after `timeout_ms` (the creation of a communicator after
 * `init_timeout_ms`), with `hepErrorTimeout`; when a rank aborts, with `hepErrorAborted`; when the process of a
 * rank is gone, within a second, with `hepErrorPeerLost`; when the CUDA context of a rank has died, within a second, with `hepErrorCuda`. A
 * context dies of a fault of any kernel of its process, or because the device is reset. A rank that fails
 * tells its peers, which fail at once in the same way, and all name the rank that is missing, not one that
 * waited for it itself. Kernels then leave cleanly: a CUDA context that was usable stays so. Later
 * operations, `hepRoutingCreate`, registrations and `hepRoutingQuery` return the first error, and the
 * communicator can only be destroyed; the ranks that are left may create another. When any rank has failed,
 * the outputs of operations that were running are undefined on all ranks.
 *
 * For this the processes of a communicator keep a TCP connection between each two of them, and a
 * thread each that listens; on the cuda backend every communicator has another thread, which watches its
 * CUDA context. They take no signals. After a timeout the first call that reports it waits up to a quarter
 * of a second for the rank that did not come, which may be waiting for somebody else: `hepGetLastError` then
 * tells what each of the two was doing. A process that is stopped, or cut off from the network, does not
 * answer and is not gone: waits for it time out. A child of fork() must not use its parent's communicators.
 *
 * STRUCTS
 *
 * Every struct that is passed by pointer begins with its size, a magic number and the version of the
 * header it was compiled with; its initializer macro sets the three and zeroes the rest. Zero means the
 * default wherever a field has one. Fields are only ever appended: the library reads the part that the
 * caller's header knows. A field that this version does not serve must be zero; otherwise the call is
 * refused with `hepErrorUnsupported`.
 *
 * All functions are available since version 0.1.0 unless they say otherwise.
 */
#ifndef HYBRIDEP_H
#define HYBRIDEP_H

#include <stddef.h>
#include <stdint.h>

#define HEP_VERSION_MAJOR 0
#define HEP_VERSION_MINOR 1
#define HEP_VERSION_PATCH 0
/** The version as one number: 1.2.3 is 10203. */
#define HEP_VERSION (HEP_VERSION_MAJOR * 10000 + HEP_VERSION_MINOR * 100 + HEP_VERSION_PATCH)

#if defined(__GNUC__)
#define HEP_API __attribute__((visibility("default")))
#else
#define HEP_API
#endif

/* The initializer macros of the structs share this. */
#ifdef __cplusplus
extern "C++" { /* A program may include this header inside of extern "C". */
template <typename Struct>
inline Struct hepInitialized(uint32_t magic) {
  Struct zeros = Struct();
  zeros.size = sizeof(Struct);
  zeros.magic = magic;
  zeros.version = HEP_VERSION;
  return zeros;
}
}
#define HEP_INITIALIZER(type, magic_number) hepInitialized<type>(magic_number)
extern "C" {
#else
#define HEP_INITIALIZER(type, magic_number) \
  { .size = sizeof(type), .magic = magic_number, .version = HEP_VERSION }
#endif

struct CUstream_st;
struct ncclComm;

/** A CUDA stream: the same type as `cudaStream_t` and `CUstream`; NULL is the legacy default stream. On
    the host backend always NULL. */
typedef struct CUstream_st* hepStream_t;

/** A communicator: one rank's membership in a group of ranks. */
typedef struct hepComm* hepComm_t;

/** The routing of one batch, and the device memory that holds it. Belongs to one communicator. */
typedef struct hepRouting* hepRouting_t;

/* ------------------------------------------------------------------------------------ results */

typedef enum {
  hepSuccess = 0,
  hepErrorInvalidArgument = 1, /**< an argument, field or shape breaks a rule */
  hepErrorInvalidUsage = 2,    /**< the call does not fit the state of its object */
  hepErrorUnsupported = 3,     /**< legal, but not served by this version or this machine */
  hepErrorOutOfMemory = 4,     /**< host or device memory could not be had */
  hepErrorSystem = 5,          /**< a system call failed */
  hepErrorCuda = 6,            /**< a CUDA call failed */
  hepErrorMismatch = 7,        /**< two ranks disagree on version, config, topology or a call */
  hepErrorUnreachable = 8,     /**< two devices cannot map each other's memory */
  hepErrorTimeout = 9,         /**< a wait for a peer expired */
  hepErrorAborted = 10,        /**< the communicator was aborted */
  hepErrorPeerLost = 11,       /**< a peer's process is gone, or the peer has left */
  hepErrorInternal = 12,       /**< a bug in this library; please report it */
  hepErrorOverflow = 13        /**< rows did not fit in the capacity of a dispatch */
} hepResult_t;

/** The name of a result, for example "hepErrorTimeout". Never NULL; static storage. Thread-safe. */
HEP_API const char* hepGetErrorString(hepResult_t result);

/**
 * The sentence that explains the last call of this thread that did not return `hepSuccess`, or the error
 * that `hepCommGetAsyncError` told it last; an empty string when there was none. Valid until the
 * thread's next failing call. Thread-safe.
 */
HEP_API const char* hepGetLastError(void);

/**
 * The version of the loaded library, in the manner of `HEP_VERSION`. Needs no GPU. Thread-safe.
 * Errors: hepErrorInvalidArgument if `version` is NULL.
 */
HEP_API hepResult_t hepGetVersion(int* version);

/* ------------------------------------------------------------------------------ configuration */

typedef enum {
  hepBackendAuto = 0, /**< cuda where a usable device exists, otherwise host */
  hepBackendCuda = 1, /**< NVIDIA GPUs of compute capability 9.0 and newer */
  hepBackendHost = 2  /**< plain host memory, shared between the processes of one machine */
} hepBackend_t;

typedef enum {
  hepTypeDefault = 0, /**< the communicator's type, or hepTypeBfloat16 in its config */
  hepTypeBfloat16 = 1,
  hepTypeFloat16 = 2,
  hepTypeFloat32 = 3,
  hepTypeFloat8E4M3 = 4, /**< without infinities; the largest number is 448 */
  hepTypeFloat8E5M2 = 5,
  hepTypeBytes = 6 /**< opaque elements of one byte */
} hepDataType_t;

/** Levels of log messages; a message is delivered if its level is at most HEP_LOG. */
typedef enum {
  hepLogNone = 0,
  hepLogError = 1,
  hepLogWarning = 2,
  hepLogInfo = 3,
  hepLogDebug = 4
} hepLogLevel_t;

/**
 * Receives a log message, without a line end. May be called from any thread, but not any more when
 * the `hepCommDestroy` of the communicator that brought it has returned.
 */
typedef void (*hepLogCallback_t)(hepLogLevel_t level, const char* message, void* context);

#define HEP_CONFIG_MAGIC 0x48455043u

/**
 * What a communicator is for. All ranks give the same values (`log` and `log_context` excepted).
 * Environment variables can override `backend` and those settings for which `hep_info --settings` names
 * one, with its range.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;

  /* The shape of the work. */
  int32_t backend;    /**< hepBackend_t */
  int32_t type;       /**< hepDataType_t of the rows; 0: hepTypeBfloat16 */
  int32_t max_tokens; /**< most tokens a rank dispatches in one batch, 1 to 65536 */
  int32_t hidden; /**< H, in elements; a row (H * element size) is a multiple of 16 bytes in each
                            type, and of 64 KiB at most in `type` */
  int32_t num_experts; /**< E, a multiple of the number of ranks, to 4096 */
  int32_t max_top_k;   /**< most selections a token may have, 1 to 32; 0: 8 */
  int32_t scale_bytes; /**< bytes of scales that can travel beside a row, to 16384; 0: none */
  int32_t low_latency_tokens; /**< most tokens a rank dispatches in one batch of a low-latency
                                   routing, 1 to 65536, more or less than max_tokens; 0: there are no
                                   such routings. Few enough make an update in the call of a dispatch
                                   part of its launch: see hepDispatchArgs_t.update */
  int64_t heap_bytes;         /**< memory for `hepMemAlloc`, to 2^40; 0: none */

  /* Settings; 0 means: chosen by the library. */
  int32_t timeout_ms;  /**< bound of every wait for a peer on a communicator (operations and
                             registrations), in milliseconds, to 3600000; 0: 30000 */
  int32_t sm_budget;   /**< most SMs (blocks) that an operation occupies, from 2; 0: 16; of a
                             low-latency routing see low_latency_blocks */
  int32_t lanes;       /**< independent sequences of operations, 1 to 4; 0: 1. Each takes memory of
                             its own; low-latency routings have four more */
  int32_t domain_size; /**< ranks that map each other's memory; 0: all; less is not served yet */

  /* Tuning, as in Hybrid-EP; 0 means: chosen by the library within sm_budget. */
  int32_t routing_threads;     /**< threads a block of the routing kernel, a multiple of 32; fewer
                                     are used where many experts leave no room for their counters */
  int32_t routing_blocks;      /**< blocks of the routing kernel */
  int32_t dispatch_stages;     /**< most rows in flight in a dispatch block, which must fit there */
  int32_t dispatch_blocks;     /**< blocks of the dispatch kernel */
  int32_t combine_load_stages; /**< most rows in flight towards a reducer; as many as fit */
  int32_t combine_store_stages; /**< rows in flight from shared memory to a peer, 1 to 4, where
                                     nothing is reduced; reducers store from registers */
  int32_t combine_blocks; /**< blocks of the combine kernel, both halves together; chosen by the
                                     library: as many as fill NVLink, at most sm_budget */

  hepLogCallback_t log; /**< receives the process's log messages, until this communicator or a later
                             one with a callback ends; NULL: they go to standard error */
  void* log_context;

  /* Types other than `type`. A dispatch may carry any type whose rows have at most the `row_bytes` of
     hepLimits_t: the larger of a row in `type` and one in `combine_type`, unless that is over 64 KiB. */
  int32_t combine_type; /**< hepDataType_t of combine: BF16, FP16 or FP32; 0: `type` if it is one of
                             them, otherwise hepTypeBfloat16 */
  int32_t partial_type; /**< hepDataType_t of partial sums: with hepTypeFloat32 there is room for
                             such, which have twice the bytes; 0: hepTypeBfloat16 */

  int32_t low_latency_blocks; /**< most SMs (blocks) that an operation of a low-latency routing
                                   occupies, from 2; 0: sm_budget if that is set, otherwise 32. The
                                   block counts above are for the other routings alone */
  int32_t init_timeout_ms;    /**< bound of the creation of a communicator as a whole, in
                                   milliseconds, to 3600000; 0: 30000 */
} hepConfig_t;

#define HEP_CONFIG_INITIALIZER HEP_INITIALIZER(hepConfig_t, HEP_CONFIG_MAGIC)

/**
 * Checks a config for `num_ranks` ranks, as the `hepCommInit...` functions do, but without a GPU, whose
 * number of SMs those look at too.
 * Errors: hepErrorInvalidArgument or hepErrorUnsupported; `hepGetLastError` names the rule and the
 * values. Thread-safe.
 */
HEP_API hepResult_t hepConfigCheck(const hepConfig_t* config, int num_ranks);

#define HEP_WORKSPACE_MAGIC 0x48455057u

/**
 * Device memory that a communicator takes on each rank, in bytes. On the cuda backend the window, the
 * scratch and each routing's memory are each rounded up to the driver's unit of allocation, mostly 2 MiB.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  uint64_t total_bytes;   /**< the sum of the next five and low_latency_bytes: the communicator's
                               window */
  uint64_t token_bytes;   /**< published rows, scales and weights: max_tokens rows a lane */
  uint64_t partial_bytes; /**< on their way back: partial sums, max_tokens * min(max_top_k, R) rows
                               a lane, and gradients of the weights */
  uint64_t record_bytes;  /**< routing records, arriving from every rank */
  uint64_t signal_bytes;  /**< signals between ranks */
  uint64_t heap_bytes;    /**< memory for `hepMemAlloc` */
  uint64_t routing_bytes; /**< in addition, for as many routings as were alive at once on a lane */
  uint64_t scratch_bytes; /**< in addition, once: counters and scratch of the kernels */
  uint64_t low_latency_bytes; /**< of the low-latency lanes: all that the other lanes have, tokens
                                   and partial sums twice, but for low_latency_tokens tokens, and
                                   where an update can be part of a dispatch's launch
                                   (hepDispatchArgs_t.update) the choices of all ranks: 16 bytes
                                   for each token, and 24 for each selection of an even max_top_k;
                                   0 without them */
  uint64_t low_latency_routing_bytes; /**< routing_bytes of a low-latency routing */
} hepWorkspace_t;

#define HEP_WORKSPACE_INITIALIZER HEP_INITIALIZER(hepWorkspace_t, HEP_WORKSPACE_MAGIC)

/**
 * Tells how much device memory a communicator of this config takes, without a GPU. Thread-safe.
 * Errors: those of `hepConfigCheck`; hepErrorInvalidArgument if `workspace` is NULL or mistyped.
 */
HEP_API hepResult_t hepWorkspaceSize(const hepConfig_t* config, int num_ranks,
                                     hepWorkspace_t* workspace);

/* ------------------------------------------------------------------------------ communicators */

#define HEP_UNIQUE_ID_BYTES 128

/** Names one rendezvous and carries its secret. Plain bytes, to be copied to every rank. */
typedef struct {
  unsigned char bytes[HEP_UNIQUE_ID_BYTES];
} hepUniqueId_t;

/**
 * Opens a rendezvous in this process and writes its id, to be passed to every rank by any means.
 * The id is a secret: whoever has it can take part. It serves one communicator, and who brings it a second
 * time waits until hepErrorTimeout. The process must live at least until every rank's `hepCommInitRank` has
 * returned.
 * Errors: hepErrorInvalidArgument; hepErrorSystem if no socket could be opened. Thread-safe.
 */
HEP_API hepResult_t hepGetUniqueId(hepUniqueId_t* id);

/**
 * Creates this rank's communicator. Collective: returns when all ranks have come, or with an error
 * after `init_timeout_ms`. On the cuda backend the rank is bound to the calling thread's current
 * device.
 *
 * comm       receives the communicator; NULL on failure
 * num_ranks  R, 1 to 72
 * id         from `hepGetUniqueId` of any one rank
 * rank       this rank, 0 <= rank < R
 * config     copied
 *
 * A rank whose config is wrong, or that disagrees with another, makes the call fail on every rank
 * with a sentence that names the ranks and the field; one that does not come is named after
 * `init_timeout_ms`. A rank whose own config is wrong waits for the others for 10 s at most.
 * Errors: hepErrorInvalidArgument, hepErrorUnsupported, hepErrorMismatch, hepErrorUnreachable,
 * hepErrorTimeout, hepErrorPeerLost, hepErrorOutOfMemory, hepErrorSystem, hepErrorCuda. Thread-safe.
 */
HEP_API hepResult_t hepCommInitRank(hepComm_t* comm, int num_ranks, const hepUniqueId_t* id,
                                    int rank, const hepConfig_t* config);

/**
 * Creates the communicators of `num_ranks` ranks of this process in one call.
 *
 * comms    [num_ranks], receives the communicators; all NULL on failure, but for a `num_ranks` that is out of
 *          range
 * devices  [num_ranks], CUDA ordinals, rank by rank; a device may appear several times (for tests);
 *          NULL: 0, 1, 2, ...; not read by the host backend
 * Errors: as `hepCommInitRank`. Thread-safe.
 */
HEP_API hepResult_t hepCommInitAll(hepComm_t* comms, int num_ranks, const int* devices,
                                   const hepConfig_t* config);

/**
 * An all-gather among the ranks of the future communicator: copies `bytes` bytes at `send` of every
 * rank to `receive` [num_ranks][bytes] of every rank, both in host memory. Returns 0 on success. How long it
 * waits is its own affair.
 */
typedef int (*hepAllGather_t)(const void* send, void* receive, size_t bytes, void* context);

/**
 * Creates this rank's communicator over an all-gather of the caller's (MPI, Gloo, a store, ...).
 * Collective. `all_gather` is called once, on this thread, to agree on a rendezvous; it is not used
 * after the call returns. It is called whatever else is wrong, so that all ranks learn of it; only a
 * rank whose `all_gather` is NULL, or whose `num_ranks` is out of range, cannot take part, and then
 * the others wait in theirs as long as that waits.
 * Errors: as `hepCommInitRank`; hepErrorSystem if `all_gather` returns non-zero. Thread-safe.
 */
HEP_API hepResult_t hepCommInitCallback(hepComm_t* comm, int num_ranks, int rank,
                                        hepAllGather_t all_gather, void* context,
                                        const hepConfig_t* config);

/**
 * Creates this rank's communicator over an existing NCCL communicator, with its ranks and its
 * device. Collective. NCCL is opened at run time and used once, to agree on a rendezvous; `nccl` may
 * be destroyed afterwards. Needs a CUDA device, on either backend. The peers of a rank whose call is
 * refused before that, because `comm` or `nccl` is NULL or NCCL cannot be opened, wait for
 * `init_timeout_ms`.
 * Errors: as `hepCommInitRank`; hepErrorUnsupported if NCCL cannot be opened. Thread-safe.
 */
HEP_API hepResult_t hepCommInitNccl(hepComm_t* comm, struct ncclComm* nccl,
                                    const hepConfig_t* config);

/**
 * Frees a communicator. Local: never waits for peers, and safe after errors. Its routings must have
 * been destroyed, and its operations must be done: those that still run are ended as by `hepCommAbort`.
 * So must be what else uses its memory, such as kernels of the caller's that read what a
 * `hepRoutingView_t` points to, or write to memory of `hepMemAlloc`; and graphs in which its operations were
 * captured must not be launched any more. NULL is legal and does nothing.
 *
 * On the cuda backend it waits until its operations have left the device, and thus for what comes before
 * them on their streams, but for no other work, such as operations of other communicators. There are two
 * exceptions, in which it may wait for all work of the device: when an operation of this communicator has
 * been captured, because its graph may still run; and where memory is shared by cudaIpc, which CUDA frees
 * and unmaps in this way: the windows if HEP_MEMORY or the machine allow nothing else, and memory of
 * cudaMalloc that was registered by ranks of other processes and is registered still.
 *
 * When the CUDA context has died it returns too. It frees host memory, threads and connections; device memory
 * that CUDA does not give back any more stays until the process ends.
 *
 * The peers are told that this rank has left. That is no failure: their operations go on, except those
 * that wait for something this rank had not done yet, which fail at once with `hepErrorPeerLost`. The
 * same happens when a process that has not destroyed its communicator returns from main or calls
 * exit(). The memory of this rank stays readable to peers that still have it mapped (in other processes
 * not if it is shared by cudaIpc).
 * Errors: hepErrorInvalidArgument if `comm` is not a communicator (any more); hepErrorInvalidUsage if routings
 * of it are alive.
 */
HEP_API hepResult_t hepCommDestroy(hepComm_t comm);

/**
 * Makes the running operations of this communicator end early: kernels that wait for a peer leave.
 * Later operations return hepErrorAborted, unless it had failed before. Does not wait for the peers, but
 * tells them: their operations and calls end in the same way, and their failure records name this rank. The
 * outputs of operations that were running are undefined. `hepCommDestroy` is still needed. From any thread at
 * any time. Errors: hepErrorInvalidArgument.
 */
HEP_API hepResult_t hepCommAbort(hepComm_t comm);

/** The number of ranks. Errors: hepErrorInvalidArgument. */
HEP_API hepResult_t hepCommCount(hepComm_t comm, int* num_ranks);

/** This rank. Errors: hepErrorInvalidArgument. */
HEP_API hepResult_t hepCommUserRank(hepComm_t comm, int* rank);

/** The CUDA ordinal of the rank's device; -1 on the host backend. Errors: hepErrorInvalidArgument. */
HEP_API hepResult_t hepCommDevice(hepComm_t comm, int* device);

/** The backend that was chosen; never hepBackendAuto. Errors: hepErrorInvalidArgument. */
HEP_API hepResult_t hepCommBackend(hepComm_t comm, hepBackend_t* backend);

#define HEP_LIMITS_MAGIC 0x4845504cu

/** What a communicator can do, and what the library chose for it. */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t max_tokens;        /**< tokens a batch */
  int32_t max_top_k;         /**< selections a token */
  int32_t num_experts;       /**< E */
  int32_t num_local_experts; /**< EL */
  int64_t row_bytes;         /**< most bytes of a dispatched row */
  int64_t max_flat_rows;   /**< R * max_tokens; also the most rows of an expert unless tokens select
                                  an expert twice */
  int64_t max_expert_rows; /**< R * max_tokens * max_top_k, before alignment */
  int32_t routing_blocks;  /**< SMs that `hepRoutingUpdate` occupies; 0 on the host backend */
  int32_t dispatch_blocks; /**< SMs that `hepDispatch` occupies; 0 on the host backend */
  int32_t combine_blocks;  /**< SMs that `hepCombine` occupies; 0 on the host backend */
  int32_t timeout_ms;      /**< bound of every wait for a peer on the communicator */
  int32_t lanes;           /**< for routings of hepModeThroughput */
  int32_t low_latency_lanes; /**< for routings of hepModeLowLatency: 4, or 0 without them */
  int32_t
      low_latency_tokens; /**< tokens a batch of those: of such a routing, read it for max_tokens */
  int32_t
      low_latency_blocks; /**< most SMs that an operation of those occupies; 0 on the host backend */
} hepLimits_t;

#define HEP_LIMITS_INITIALIZER HEP_INITIALIZER(hepLimits_t, HEP_LIMITS_MAGIC)

/** Tells a communicator's limits. Errors: hepErrorInvalidArgument. */
HEP_API hepResult_t hepCommLimits(hepComm_t comm, hepLimits_t* limits);

/**
 * Allocates `bytes` bytes from the communicator's heap (`heap_bytes` of its config), which the peers
 * have mapped: they read x and y there in place, where `hepCommRegister` says so. Local. The memory is
 * aligned to 256 bytes, is not cleared, and lives until `hepMemFree` or `hepCommDestroy`.
 * Errors: hepErrorInvalidArgument; hepErrorOutOfMemory if no free block of the heap is large enough.
 */
HEP_API hepResult_t hepMemAlloc(hepComm_t comm, size_t bytes, void** pointer);

/**
 * Gives memory back to the heap; the caller has seen to it that no enqueued operation uses it. NULL
 * is legal. Errors: hepErrorInvalidArgument if `pointer` is not from `hepMemAlloc` of `comm`.
 */
HEP_API hepResult_t hepMemFree(hepComm_t comm, void* pointer);

/**
 * Registers memory that the caller allocated, so that the peers read it in place, as if it came from
 * `hepMemAlloc`: x of a dispatch that does not quantise it, and, on the cuda backend, flat y of a combine
 * that does nothing to it (weight mode hepWeightsNone, partial sums of the type of y), if they lie in one
 * registered range as a whole. An operation in halves reads neither in place (`hepDispatchSend`), and small
 * batches of low-latency routings travel sooner if they are copied, which the library does then.
 *
 * Collective: all ranks call it, from threads of their own, each with memory of its own or with NULL and 0,
 * and it waits for all of them, at most `timeout_ms`. What is refused on one rank is refused on all, and
 * nothing is registered; all are told the reason.
 *
 * On the cuda backend it is memory of cudaMalloc, or of cuMemCreate with POSIX descriptors (fabric handles
 * where ranks are on several hosts) among its requestedHandleTypes, or a part of one such allocation.
 * Not during stream capture, which CUDA may end because of the attempt. Operations that are enqueued may
 * go on. On the host backend peers cannot map such memory: its tokens are copied once all the same.
 *
 * The memory stays the caller's, and must not be freed before it is deregistered, or the communicator
 * destroyed on all ranks.
 *
 * pointer  memory of the rank's device
 * bytes    its size; the ranges of a rank must not overlap, and there is room for 64 of them
 * Errors: hepErrorInvalidArgument; hepErrorInvalidUsage during capture, or if there is no room;
 * hepErrorUnsupported if a rank's memory cannot be shared; hepErrorUnreachable; hepErrorMismatch if a rank
 * calls `hepCommDeregister` instead; hepErrorSystem, hepErrorCuda; hepErrorTimeout, hepErrorPeerLost and
 * hepErrorAborted, with which the communicator has failed.
 */
HEP_API hepResult_t hepCommRegister(hepComm_t comm, void* pointer, size_t bytes);

/**
 * Undoes `hepCommRegister` of the same pointer; no operation that is enqueued, and no graph that will be
 * launched, may use the memory. Collective in the same way: NULL is legal, ranks may undo different
 * registrations, and when it returns no peer has the memory mapped any more.
 *
 * Operations on other memory that are enqueued may go on. But where the memory is of cudaMalloc and ranks
 * are in several processes, CUDA may unmap it only when all work of the device is done: what any rank has
 * enqueued before must then not wait for what another one enqueues afterwards.
 * Errors: hepErrorInvalidArgument if `pointer` is not registered; otherwise as `hepCommRegister`.
 */
HEP_API hepResult_t hepCommDeregister(hepComm_t comm, void* pointer);

/**
 * Tells whether anything has gone wrong on the device or with the peers: hepSuccess, hepErrorTimeout,
 * hepErrorAborted, hepErrorPeerLost, hepErrorCuda if the CUDA context of a rank has died, hepErrorMismatch
 * if ranks did not call an operation alike. Then, with the communicator usable: hepErrorInvalidArgument for an
 * expert id outside [-1, E), which counted as -1, or a token whose map selects more than top_k experts;
 * hepErrorOverflow for a dispatch with hepOverflowError whose rows did not fit. Each is the first of its kind
 * on this rank and stays; of several kinds the first in this list is told. `hepGetLastError` then explains it.
 * Does not wait for the device. From any thread at any time.
 * Errors of the call itself: hepErrorInvalidArgument, with `*error` untouched.
 */
HEP_API hepResult_t hepCommGetAsyncError(hepComm_t comm, hepResult_t* error);

typedef enum {
  hepOperationNone = 0,
  hepOperationRouting = 1,
  hepOperationDispatch = 2,
  hepOperationCombine = 3
} hepOperation_t;

typedef enum {
  hepPhaseNone = 0,
  hepPhaseBlocks = 1,  /**< waiting for the other blocks of the same kernel */
  hepPhaseRecords = 2, /**< routing: waiting for a peer's records */
  hepPhaseRows = 3,    /**< dispatch: waiting for a peer's rows to be published */
  hepPhaseWeights = 4, /**< dispatch: waiting for a peer's weights to be published */
  hepPhaseReaders = 5, /**< waiting for a peer to have read this rank's rows */
  hepPhaseSlots = 6,   /**< combine: waiting for a peer's slots to be free again */
  hepPhasePartials = 7 /**< combine: waiting for a peer's partial sums or outputs */
} hepPhase_t;

#define HEP_FAILURE_MAGIC 0x48455046u

/**
 * The first failure on this rank. Without an operation it ended no wait of this rank's: the rank aborted,
 * lost a peer or was told by one while it was at rest, its CUDA context died, or a registration failed.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t result;    /**< hepResult_t: hepSuccess if nothing failed */
  int32_t operation; /**< hepOperation_t */
  int32_t phase;     /**< hepPhase_t */
  int32_t rank;      /**< this rank */
  int32_t
      missing_rank; /**< the rank that is gone or did not come; of hepErrorAborted: that aborted,
                             or that was waited for; of hepErrorCuda: whose CUDA context has died;
                             -1 if none */
  uint64_t number;  /**< which operation of its kind on its lane, from 1 */
  uint64_t
      expected;  /**< the signal that was waited for; of hepErrorMismatch: this rank's top_k, or a
                            summary of its call, which `hepGetLastError` tells in words; of
                            hepErrorInvalidUsage: T << 32 | K of the call */
  uint64_t seen; /**< the signal that was there; of hepErrorMismatch: the other rank's; of
                            hepErrorInvalidUsage: T << 32 | K of the update that was executed */
  int32_t mode;  /**< hepMode_t of the lane */
  int32_t lane;  /**< of the operation, as in hepRoutingConfig_t */
} hepFailure_t;

#define HEP_FAILURE_INITIALIZER HEP_INITIALIZER(hepFailure_t, HEP_FAILURE_MAGIC)

/**
 * Tells what failed first. Does not wait for the device. From any thread at any time.
 * Errors: hepErrorInvalidArgument.
 */
HEP_API hepResult_t hepCommGetFailure(hepComm_t comm, hepFailure_t* failure);

/* ------------------------------------------------------------------------------------- routing */

/**
 * What the operations of a routing are made for. Arguments, layouts, order and results are the same in
 * both modes.
 */
typedef enum {
  hepModeThroughput = 0, /**< bandwidth with few SMs; batches of up to max_tokens tokens a rank */
  hepModeLowLatency = 1 /**< little time with more SMs; batches of up to low_latency_tokens tokens a
                              rank. Operations can be split in halves, and four be under way at once */
} hepMode_t;

#define HEP_ROUTING_CONFIG_MAGIC 0x48455052u

/** What a routing is for. All ranks give the same values. */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t alignment; /**< each expert's block starts at a multiple: 1, 8, 16, 32, 64, 128; 0: 1 */
  int32_t mode; /**< hepMode_t; hepModeLowLatency needs low_latency_tokens in the communicator's
                           config */
  int32_t lane; /**< the lane that the routing lives on, of those of its mode: from 0, below the
                           config's lanes, in hepModeLowLatency below 4 */
} hepRoutingConfig_t;

#define HEP_ROUTING_CONFIG_INITIALIZER HEP_INITIALIZER(hepRoutingConfig_t, HEP_ROUTING_CONFIG_MAGIC)

/**
 * Creates a routing and its device memory (`routing_bytes` of `hepWorkspaceSize`, in hepModeLowLatency
 * `low_latency_routing_bytes`). Any number of routings may share a lane. Local. `config` may be NULL for the
 * defaults. The call is legal while streams are being captured, and becomes no part of their graphs: the
 * memory is taken at once, and lives until the communicator is destroyed.
 * Errors: hepErrorInvalidArgument, hepErrorUnsupported, hepErrorOutOfMemory, hepErrorCuda;
 * the result of `hepCommGetAsyncError` once the communicator failed.
 */
HEP_API hepResult_t hepRoutingCreate(hepRouting_t* routing, hepComm_t comm,
                                     const hepRoutingConfig_t* config);

/**
 * Frees a routing. Local, waits for nothing: work that reads its memory, such as what a
 * `hepRoutingView_t` points to, must be done or come before the next operation of the lane, which may
 * use the memory again. NULL is legal.
 * Errors: hepErrorInvalidArgument; hepErrorInvalidUsage between the halves of an operation of this
 * routing, unless the communicator has failed.
 */
HEP_API hepResult_t hepRoutingDestroy(hepRouting_t routing);

typedef enum {
  hepIndexInt32 = 0,
  hepIndexInt64 = 1,
  hepIndexMap =
      2 /**< a byte map [num_tokens][E]: an expert is selected where its byte is not 0; the
                       k of a selection is its rank among the token's, by ascending expert */
} hepIndexType_t;

/**
 * Digests the router's choice for a batch and exchanges it with all ranks. Collective.
 *
 * indices      [num_tokens][top_k] expert ids in device memory, aligned to their size; -1: no
 *              selection. The same expert twice in a token makes two expert rows and one flat row.
 *              An id outside [-1, E) counts as -1 and is reported by `hepCommGetAsyncError`.
 *              Or a byte map, by `index_type`: a token may select fewer than top_k experts; those past
 *              the first top_k count as not selected and are reported likewise.
 *              Read in stream order. NULL is legal if num_tokens is 0.
 * num_tokens   T, 0 to max_tokens, of a low-latency routing low_latency_tokens; may differ from rank to
 *              rank. Replays of a captured graph have the T of its capture: a smaller batch gives -1
 *              for all selections of the tokens past its end, which then have no rows
 * top_k        K, 1 to max_top_k; the same on all ranks, or the communicator fails with an
 *              asynchronous hepErrorMismatch
 * index_type   the type of the ids, or hepIndexMap; may differ from rank to rank
 * stream       NULL on the host backend
 *
 * Until its next update the routing serves any number of dispatches and combines, in any order.
 * Errors: hepErrorInvalidArgument, hepErrorCuda; hepErrorInvalidUsage between the halves of an operation
 * of the lane; the result of `hepCommGetAsyncError` once the communicator failed.
 */
HEP_API hepResult_t hepRoutingUpdate(hepRouting_t routing, const void* indices, int64_t num_tokens,
                                     int top_k, hepIndexType_t index_type, hepStream_t stream);

/** How many rows the latest dispatch of a routing had, on the device. */
typedef struct {
  int64_t needed; /**< the capacity that takes all rows: rows that the layout needs, padding rows of
                         expert-major included; of expert-padded, rows of the fullest expert */
  int64_t written;  /**< min(needed, capacity) */
  int64_t overflow; /**< 1 if needed > capacity, otherwise 0 */
} hepRowCounters_t;

#define HEP_ROUTING_VIEW_MAGIC 0x48455056u

/** Device memory of a routing: constant addresses, until it is destroyed; contents valid in stream order,
    once it has been updated. Read-only. */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  const int32_t* tokens_per_expert;     /**< [EL] expert rows of each local expert */
  const int32_t* expert_offsets;        /**< [EL + 1] aligned starts; the last: padded rows */
  const int64_t* num_flat_rows;         /**< [1] */
  const int64_t* num_expert_rows;       /**< [1] without padding */
  const hepRowCounters_t* row_counters; /**< [1] of the latest dispatch */
} hepRoutingView_t;

#define HEP_ROUTING_VIEW_INITIALIZER HEP_INITIALIZER(hepRoutingView_t, HEP_ROUTING_VIEW_MAGIC)

/** Tells where a routing's results lie on the device. Errors: hepErrorInvalidArgument. */
HEP_API hepResult_t hepRoutingGetView(hepRouting_t routing, hepRoutingView_t* view);

#define HEP_ROUTING_COUNTS_MAGIC 0x4845504eu

/** A routing's counts on the host. */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t* tokens_per_expert; /**< in: [EL] host memory to fill, or NULL */
  int64_t num_flat_rows;      /**< rows that the flat layout needs */
  int64_t num_expert_rows;    /**< expert rows without padding */
  int64_t num_padded_rows;    /**< rows that the expert-major layout needs, padding included; the
                                   capacity of expert-padded is the largest of tokens_per_expert */
} hepRoutingCounts_t;

#define HEP_ROUTING_COUNTS_INITIALIZER HEP_INITIALIZER(hepRoutingCounts_t, HEP_ROUTING_COUNTS_MAGIC)

/**
 * Waits until all work enqueued on `stream` is done and returns the counts of the latest update, so
 * that outputs can be allocated exactly. Local. Not during stream capture.
 * Errors: hepErrorInvalidArgument, hepErrorCuda; hepErrorInvalidUsage before the first update, during
 * capture, or between the halves of a dispatch with an update; the result of `hepCommGetAsyncError` if
 * the communicator failed.
 */
HEP_API hepResult_t hepRoutingQuery(hepRouting_t routing, hepRoutingCounts_t* counts,
                                    hepStream_t stream);

/* ------------------------------------------------------------------------ dispatch and combine */

typedef enum {
  hepLayoutFlat = 0,        /**< [flat rows][H]; for combine, the caller has summed the results of a
                                 row's local experts into one row */
  hepLayoutExpertMajor = 1, /**< [expert rows, each expert's block aligned][H] */
  hepLayoutExpertPadded = 2 /**< [EL][capacity][H]: `capacity` rows an expert, in the order of
                                 expert-major, of which the first ones are in use */
} hepLayout_t;

typedef enum {
  hepOverflowDrop = 0, /**< rows past the capacity are not written; the row counters tell */
  hepOverflowError = 1 /**< in addition `hepCommGetAsyncError` tells of the first on this rank, as
                            hepErrorOverflow; the communicator stays usable */
} hepOverflow_t;

/**
 * How a dispatch quantises x from BF16 to hepTypeFloat8E4M3 on its way to the peers, who receive the
 * quantised rows and their scales. Every block of 128 consecutive elements of a row (the last may be
 * shorter) has a scale. With amax the largest |x| of the block's finite elements, in FP32 and rounded to
 * nearest even,
 *
 *   scale = amax / 448, or 1 if amax is 0;
 *           with hepQuantizeUe8m0 then rounded up to a power of two, 2^-127 at least
 *   q     = x / scale, rounded to E4M3 to nearest even
 *
 * where |q| is 448 at most (infinities too), the sign of zero stays and NaN becomes 0x7f.
 */
typedef enum {
  hepQuantizeNone = 0,
  hepQuantizeFloat32 = 1, /**< scales in FP32: 4 bytes a block */
  hepQuantizeUe8m0 = 2    /**< scales as their exponent of two, biased by 127: a byte a block */
} hepQuantization_t;

#define HEP_DISPATCH_ARGS_MAGIC 0x48455044u

/**
 * A dispatch. Pointers are device memory of this rank, outputs any such memory, without registration.
 * `rows` and `x` are aligned to 16 bytes. Outputs must not overlap each other or the inputs, which is
 * not checked.
 * An optional output is not written if NULL.
 *
 * Rows whose place is not below `capacity` are dropped; nothing is written at or past it. In the
 * expert-major layout the padding rows at the end of each expert's block, as far as they lie below the
 * capacity, are zero, with scales and weight 0, source -1 and token -1. What lies past the last row that
 * the layout needs is left untouched, and so is in the expert-padded layout what lies past an expert's
 * last row: grouped GEMMs that are masked by `expert_rows` do not read it. The expert-padded layout
 * holds EL * capacity rows: for [capacity] below read [EL][capacity] there.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t layout;   /**< hepLayout_t */
  int32_t overflow; /**< hepOverflow_t */
  int32_t type;     /**< hepDataType_t of x and rows, the same on all ranks, of rows that fit (see
                         hepConfig_t); 0: the communicator's */
  int32_t quantize; /**< hepQuantization_t, the same on all ranks: x is BF16 and `type` must be
                         hepTypeFloat8E4M3 */

  /* Inputs. */
  const void* x; /**< [T][H]; memory from `hepMemAlloc`, or registered, is read in place, where
                             `hepCommRegister` says so; NULL if T is 0 */
  const float* weights; /**< [T][K], or NULL: every weight is 1. Either all ranks with tokens give
                             them or none does; otherwise hepErrorMismatch */

  /* Outputs. */
  void* rows;       /**< [capacity][H] */
  int64_t capacity; /**< rows that `rows` and the arrays below hold; 0 only if `rows` is NULL: this
                         rank then takes no rows */
  float* row_weights; /**< optional; expert layouts: [capacity]; flat: [capacity][K], the weights of
                              the selections of this rank's experts, 0 elsewhere */
  int32_t* row_experts; /**< optional, flat only: [capacity][K] local expert ids, -1 elsewhere */
  int32_t* row_sources; /**< optional: [capacity] source rank of each row */
  int32_t* row_tokens;  /**< optional: [capacity] token of each row, an index on its source rank */
  int32_t* gather;      /**< optional, flat only: [gather_capacity] the flat rows sorted by expert:
                              for each place of the expert-major layout the flat row that belongs
                              there, -1 for padding and for dropped rows */
  int64_t gather_capacity; /**< entries that `gather` holds; those past it are not written */

  /* Scales, of the communicator's scale_bytes a row, forwarded bit for bit. */
  const void* scales; /**< [T][scale_bytes], or NULL. Either all ranks with tokens give them or none
                           does; otherwise hepErrorMismatch. NULL if x is quantised: then they are
                           computed, followed by zeros to scale_bytes */
  void* row_scales;   /**< optional, where tokens have scales. Row-major: [capacity][scale_bytes].
                           Column-major: with C = scale_bytes / scale_element_bytes columns, element
                           (row r, column c) is number c * row_scales_stride + r; expert-padded:
                           [EL][C][row_scales_stride], by the rows of each expert */
  int64_t row_scales_stride;   /**< 0: row-major; otherwise elements between the columns, at least
                                    capacity, in bytes a multiple of 16 */
  int32_t scale_element_bytes; /**< of column-major scales: 1, 2 or 4, a divisor of scale_bytes, to
                                    which row_scales is aligned; otherwise 0 */
  int32_t reserved;            /**< zero */

  int32_t* expert_rows; /**< optional, expert-padded only: [EL] rows of each expert that were
                             written: min(tokens_per_expert, capacity) */

  /* An update in the same call, on all ranks or on none: if `update` is not 0, the routing is first
     updated as by hepRoutingUpdate(routing, indices, num_tokens, top_k, index_type, stream), and T and K
     above are those; the call is refused as a whole, or not at all. Otherwise the rest is 0. Ranks that
     differ in this wait for each other until timeout_ms.

     On the cuda backend both are one launch on a low-latency routing, if the choices of all ranks,
     R * low_latency_tokens * max_top_k * 2 bytes, counters and four rows of the most bytes (`row_bytes` of
     hepLimits_t) fit in 220 KiB, the shared memory of a block: with 512 tokens, top-8 and H = 7168 in BF16
     up to 19 ranks. Otherwise they are two. A routing map takes one more in either case. */
  int32_t update;
  int32_t top_k;
  int32_t index_type; /**< hepIndexType_t */
  int32_t reserved2;  /**< zero */
  const void* indices;
  int64_t num_tokens;
} hepDispatchArgs_t;

#define HEP_DISPATCH_ARGS_INITIALIZER HEP_INITIALIZER(hepDispatchArgs_t, HEP_DISPATCH_ARGS_MAGIC)

/**
 * Brings every token to the ranks of its selected experts. Collective: all ranks call it on the
 * routing of the same update, with the same layout, type and quantisation, or the communicator fails with
 * an asynchronous hepErrorMismatch. When it is done, in stream order, `x` and all other arguments may be
 * reused. The struct is read during the call only.
 *
 * `weights` are kept in the routing for a later combine in weight mode hepWeightsDispatched.
 * Errors: hepErrorInvalidArgument, hepErrorUnsupported, hepErrorCuda; hepErrorInvalidUsage before the
 * routing's first update, or between the halves of an operation of the lane; the result of
 * `hepCommGetAsyncError` once the communicator failed.
 */
HEP_API hepResult_t hepDispatch(hepRouting_t routing, const hepDispatchArgs_t* args,
                                hepStream_t stream);

/**
 * The first half of a dispatch on a low-latency routing: makes known what the peers need of this rank. It
 * waits at most until the peers are done with the lane's operations before. Collective, like all
 * halves: all ranks split an operation, or none. It copies x (or quantises it) wherever that lies, so that
 * the second half waits for nobody to read it.
 *
 * `hepDispatchReceive` completes it, on any stream on which the caller has ordered it after the first
 * half, with the arguments given here; the struct is read during this call only. Until then no other
 * operation of the lane may be issued, on this routing or another, but operations of all other lanes; and
 * until it is done, in stream order, all inputs and outputs belong to the library. Both halves together
 * do exactly what `hepDispatch` does. They may be captured in one CUDA graph or in two; each graph is
 * then replayed as often as the other, in turn.
 * Errors: as `hepDispatch`; hepErrorUnsupported for a routing of hepModeThroughput.
 */
HEP_API hepResult_t hepDispatchSend(hepRouting_t routing, const hepDispatchArgs_t* args,
                                    hepStream_t stream);

/**
 * The second half of a dispatch: waits for what the peers have sent, and writes the outputs.
 * Errors: hepErrorInvalidArgument, hepErrorUnsupported, hepErrorCuda; hepErrorInvalidUsage unless
 * `hepDispatchSend` was the routing's latest operation; the result of `hepCommGetAsyncError` once the
 * communicator failed.
 */
HEP_API hepResult_t hepDispatchReceive(hepRouting_t routing, hepStream_t stream);

typedef enum {
  hepWeightsNone = 0, /**< plain sum */
  hepWeightsDispatched =
      1,            /**< the weights that the routing's latest dispatch with weights carried.
                                 A flat row stands for all its selections: its weight is the FP32 sum
                                 of theirs, in ascending (expert, k) order */
  hepWeightsRow = 2 /**< `row_weights`, one for each row of y */
} hepWeightMode_t;

#define HEP_COMBINE_ARGS_MAGIC 0x48455042u

/**
 * A combine. Pointers are device memory of this rank, without registration. `y` and `out` are
 * aligned to 16 bytes and must not overlap.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t layout;      /**< hepLayout_t of y */
  int32_t weight_mode; /**< hepWeightMode_t; the same on all ranks */
  int32_t type; /**< hepDataType_t of y and out, the same on all ranks: BF16, FP16 or FP32; 0:
                            the communicator's combine_type */
  int32_t partial_type; /**< hepDataType_t of partial sums, on all ranks the same: hepTypeBfloat16,
                             or hepTypeFloat32 if the communicator has that; 0: the communicator's */

  const void* y; /**< [capacity][H] expert outputs, at the places that dispatch gave; expert-padded:
                         [EL][capacity][H] */
  int64_t capacity; /**< rows that y holds, of expert-padded rows an expert; further ones count as
                         dropped; 0 only if y is NULL */
  const float* row_weights; /**< for hepWeightsRow, one a row in each layout: [capacity],
                                 expert-padded [EL][capacity]; otherwise NULL */
  void* out;                /**< [T][H] in the tokens' order; NULL if T is 0 */

  /* Gradients of the weights, in a backward pass. Either every rank passes both pointers or none does;
     otherwise hepErrorMismatch. Ranks without rows or tokens may pass NULL for what they lack. */
  const float* row_gradients; /**< flat: [capacity][K], read where the row has selections of this
                                   rank's experts; expert layouts: [capacity], expert-padded
                                   [EL][capacity] */
  float* gradients; /**< [T][K] the tokens' gradients: those of the selections' rows, bit for
                                   bit, 0 where nothing was selected or the row is dropped */
} hepCombineArgs_t;

#define HEP_COMBINE_ARGS_INITIALIZER HEP_INITIALIZER(hepCombineArgs_t, HEP_COMBINE_ARGS_MAGIC)

/**
 * Brings the experts' results back and sums them. Collective: all ranks call it on the routing of
 * the same update, with the same layout, weight mode and types, or the communicator fails with an
 * asynchronous hepErrorMismatch. When it is done, in stream order, all arguments may be reused. The struct
 * is read during the call only.
 *
 * Numbers. The contributions of one rank to a token are taken in ascending (expert, k) order. The
 * first gives s = w * y, each further one s = fma(w, y, s), in FP32 (in mode hepWeightsNone w is 1
 * and the products are exact); dropped rows are left out, and a rank whose rows were all dropped
 * gives +0. Each sum is rounded once, to nearest even, to the partial type. The ranks' partial sums
 * are added in FP32 in ascending rank order, beginning with the first, and rounded once to the type
 * of `out`; sums past the largest number become infinite. A token without a selection gives +0. A NaN
 * in the result is the type's canonical one (0x7fff in BF16 and FP16, 0x7fffffff in FP32).
 * Errors: as `hepDispatch`; hepErrorInvalidUsage for hepWeightsDispatched when no dispatch with
 * weights followed the routing's latest update (on a rank without tokens: no dispatch at all; ranks
 * of which one was refused agree anew).
 */
HEP_API hepResult_t hepCombine(hepRouting_t routing, const hepCombineArgs_t* args,
                               hepStream_t stream);

/**
 * The first half of a combine on a low-latency routing: sums this rank's contributions, and sends them to
 * the tokens' ranks, wherever y lies: peers never read it in place. `hepCombineReceive` completes it. All
 * that `hepDispatchSend` says of halves holds.
 * Errors: as `hepCombine`; hepErrorUnsupported for a routing of hepModeThroughput.
 */
HEP_API hepResult_t hepCombineSend(hepRouting_t routing, const hepCombineArgs_t* args,
                                   hepStream_t stream);

/**
 * The second half of a combine: adds up what the ranks have sent.
 * Errors: as `hepDispatchReceive`, with `hepCombineSend`.
 */
HEP_API hepResult_t hepCombineReceive(hepRouting_t routing, hepStream_t stream);

#ifdef __cplusplus
}
#endif

#endif /* HYBRIDEP_H */
