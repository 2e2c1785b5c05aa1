/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libhybridep: expert-parallel all-to-all for Mixture-of-Experts layers.
 *
 * INTRODUCTION
 *
 * The tokens of a batch live on the ranks that computed them. The experts live on the ranks that
 * host them. `hepDispatch` brings every token to the ranks of its selected experts. `hepCombine`
 * brings the experts' results back, weighted and summed, in the tokens' own order. GUIDE.md beside
 * this file is the user's guide.
 *
 * LIFE CYCLE
 *
 *   1. Describe the job in a `hepConfig_t` and create a communicator on every rank, with one of
 *      the four `hepCommInit...` functions.
 *   2. Create a routing (`hepRoutingCreate`), one for each batch that is in flight.
 *   3. For every batch: call `hepRoutingUpdate` with the router's choice, then any number
 *      of `hepDispatch` and `hepCombine` on that routing.
 *   4. Destroy the routings, then the communicators.
 *
 * WORDS AND SHAPES
 *
 *   rank         member of a communicator, 0 <= rank < R, bound to one device
 *   E, EL        number of experts of the job and of each rank: EL = E / R; rank e / EL hosts
 *                expert e
 *   T, K         in the routing's latest update: tokens that a rank dispatches, and selections of
 *                a token
 *   H            hidden size
 *   selection    a pair (token, k) whose expert id is not -1
 *   flat row     one row per (source rank, token) that selected at least one expert of this rank,
 *                ordered by (source rank, token)
 *   expert row   one row per selection of an expert of this rank, ordered by (local expert,
 *                source rank, token, k)
 *   place        the index of a row in the output of a layout
 *   device memory   cuda: memory of the rank's GPU. Managed memory is refused, because its pages
 *                may lie on the host. host: any memory of the process
 *
 * Places are a pure function of the routing: two runs give the same bytes, on every backend and
 * with any number of SMs. Matrices are dense and row-major. Shapes are written [rows][columns].
 *
 * STREAMS
 *
 *                              cuda                           host
 *   stream argument            any stream                     NULL
 *   a call returns             when its work is enqueued      when its work is done
 *   a call waits               never (hepRoutingQuery: for    for the peers
 *                              the stream)
 *   each rank needs            its own stream                 its own thread or process
 *   capture into a CUDA graph  every call that takes a        -
 *                              stream, except hepRoutingQuery
 *
 * A replay has the pointers and sizes (T, K, capacities) of its capture. The contents may differ
 * each time. A call is made for T and K of the latest update that was called, captured or not, on
 * its routing. The device compares them with those of the update that was executed. If they
 * differ, the communicator fails with hepErrorInvalidUsage before a row moves, and
 * `hepGetLastError` names both. Example: capture an update with T = 8, call one with T = 4, launch
 * the graph, call a dispatch. The call is made for 4, but the device has executed 8.
 *
 * LANES
 *
 * A lane is a sequence of operations (updates, dispatches and combines). Every routing lives on
 * one: on one of the config's `lanes`, or, if it is a low-latency routing, on one of the four
 * low-latency lanes.
 *
 *   operations of one lane     All ranks issue them in the same order. The caller orders them on
 *                              the device: on one stream, or on several that events chain.
 *   operations of two lanes    They may overlap: on different streams (cuda), on different threads
 *                              (host), or by their halves (`hepDispatchSend`). Ranks may issue them
 *                              in different orders, as long as no two ranks wait for what the other
 *                              has yet to issue. First halves before second halves are always safe.
 *
 * If a call returns an error, this rank has not joined the operation. Repeat it, or abort, before
 * any other call on this lane; otherwise the peers pair your next call with it.
 *
 * On the cuda backend, operations that may run at the same time must find room on the device
 * together. A block may occupy a whole SM until its operation ends. It waits for the other blocks
 * of its operation, and for the same operation on the peers. The rule is: add up the largest grids
 * of all lanes, and of all communicators of the process, whose operations may run at the same time.
 * The sum must not exceed the SMs that they can use. The largest grid of a lane is the maximum of
 * routing_blocks, dispatch_blocks and combine_blocks of `hepLimits_t`; of a low-latency lane it is
 * low_latency_blocks. The SMs are those of the device, or of the green context or the MPS share. If
 * the rule is broken, two ranks may begin with different operations, and both wait until
 * `timeout_ms`. Smaller budgets (`sm_budget`, `low_latency_blocks`) keep the rule. A common stream
 * for operations that do not fit together keeps it, too. The defaults are for one low-latency
 * operation at a time, which may take 64 SMs: two of them leave 4 of 132 SMs. Set
 * low_latency_blocks to 32 where operations of all four low-latency lanes may run at the same time.
 * Creation warns, at level hepLogWarning, when all lanes of the communicator together exceed the
 * SMs of the device. `hep_info --low-latency-tokens N` prints their sum. Streams may also share a
 * hardware queue, and then run one after the other (CUDA_DEVICE_MAX_CONNECTIONS). If lanes have
 * streams of their own, issue all operations in the same order on all ranks.
 *
 * Several ranks may share a device, for tests. Each rank then needs a stream of its own, not the
 * legacy default stream. The blocks of all these ranks must find room on the device together. CUDA
 * does not promise that a kernel starts while others wait: all ranks enqueue an operation before
 * any of them enqueues the next one.
 *
 * THREADS
 *
 *   functions                                          at the same time from several threads
 *   without a handle, and hepCommInit...               yes
 *   on different communicators                         yes
 *   on routings of different lanes                     yes
 *   otherwise on one communicator and its routings     no: one thread at a time
 *   hepCommAbort, hepCommGetAsyncError and             yes: any thread, any time before
 *   hepCommGetFailure                                  hepCommDestroy
 *
 * A thread that calls the library needs a stack of 64 KiB on the host backend. (Measured on x86-64
 * with glibc, 72 ranks: 36 KiB with a library that has the cuda backend, 24 KiB without.) On the
 * cuda backend the stack that CUDA needs comes in addition; the default of 8 MiB is enough.
 *
 * ERRORS
 *
 * Every function but hepGetErrorString and hepGetLastError returns a `hepResult_t`. It checks its
 * arguments before it enqueues anything, and leaves a sentence with names and numbers for
 * `hepGetLastError`. Peers do not learn of a refused call: a rank that cannot repeat it ends its
 * part with `hepCommAbort` or `hepCommDestroy`.
 *
 * These are the results besides hepSuccess, with the `hepError` of each name left out. The comment
 * of a function says when it returns InvalidUsage.
 *
 *   function                            results
 *   hepGetVersion, hepCommCount,        InvalidArgument
 *   hepCommUserRank, hepCommDevice,
 *   hepCommBackend, hepCommLimits,
 *   hepCommAbort, hepMemFree,
 *   hepCommGetAsyncError (the call),
 *   hepCommGetFailure, hepRoutingGetView,
 *   hepRoutingMemoryBytes
 *   hepConfigCheck, hepWorkspaceSize    InvalidArgument Unsupported
 *   hepGetUniqueId                      InvalidArgument System
 *   hepCommInit...                      InvalidArgument Unsupported OutOfMemory System Cuda
 *                                       Mismatch Unreachable Timeout PeerLost Network
 *   hepCommDestroy, hepRoutingDestroy   InvalidArgument InvalidUsage
 *   hepMemAlloc                         InvalidArgument OutOfMemory
 *   hepCommRegister, hepCommDeregister  InvalidArgument InvalidUsage Unsupported System Cuda
 *                                       Mismatch Unreachable, failures
 *   hepRoutingCreate                    InvalidArgument Unsupported OutOfMemory Cuda, failures
 *   hepRoutingUpdate, hepRoutingQuery   InvalidArgument InvalidUsage Cuda, failures
 *   hepDispatch, hepCombine and         InvalidArgument InvalidUsage Unsupported Cuda, failures
 *   their halves
 *   every function                      OutOfMemory (of host memory), Internal
 *
 * "Failures" are the results with which a communicator has failed. `hepCommGetAsyncError` tells
 * them, and these calls return them from then on:
 *
 *   failure         cause                                                    after
 *   Timeout         a rank does not come                                     timeout_ms; creation:
 *                                                                            init_timeout_ms
 *   Aborted         a rank called hepCommAbort                               at once
 *   PeerLost        the process of a rank is gone, or the rank has left      within a second
 *   Cuda            the CUDA context of a rank has died: by a fault of any   within a second
 *                   kernel of its process, or by a reset of the device
 *   Network         the network between domains has failed, of a rank, or    as soon as the network
 *                   between two                                              tells
 *   Mismatch        ranks did not call an operation alike                    with the operation
 *   InvalidUsage    T or K of a call are not those of the executed update    with the operation
 *
 * FAILURES
 *
 * No wait for a peer is endless. A rank that fails tells its peers, which fail at once in the same
 * way. All ranks name the rank that is missing, not one that waited for it itself. Kernels leave
 * cleanly: a CUDA context that was usable stays usable. A failed communicator can only be
 * destroyed. The ranks that are left may create another one. When any rank has failed, the outputs
 * of operations that were running are undefined on all ranks.
 *
 * The first call that reports a timeout waits for at most 250 ms for what the missing rank tells.
 * `hepGetLastError` then says what both ranks were doing.
 *
 * A process that is stopped, or cut off from the network, does not answer and is not gone: waits
 * for it time out. A child of fork() must not use its parent's communicators.
 *
 * Each process keeps a TCP connection to every other process of the communicator, and a thread that
 * listens. On the cuda backend every communicator has another thread, which watches its CUDA
 * context. These threads take no signals.
 *
 * CAPACITY
 *
 *   layout          rows that take everything               without hepRoutingQuery
 *   flat            num_flat_rows                           R * T
 *   expert-major    num_padded_rows                         R * T * K + EL * (alignment - 1)
 *   expert-padded   max_expert_rows, an expert              R * T, an expert; R * T * K if a token
 *                                                           may select an expert more than once
 *
 * T in this table is max_tokens, or low_latency_tokens. Rows whose place is not
 * below the capacity are dropped, and nothing is written at or past it.
 *
 * ZERO COPY
 *
 * Peers read x and y in place, without a copy before, in these cases:
 *
 *                      x of a dispatch                  y of a combine
 *   memory             hepMemAlloc; on the cuda         cuda backend only: hepMemAlloc or
 *                      backend hepCommRegister, too     hepCommRegister
 *   operation          x is not quantised               flat layout, hepWeightsNone, partial_type
 *                                                       is type
 *   in halves          copied                           sent
 *   small batches in   copied, because that is sooner;  sent, because that is sooner;
 *   low latency        the library decides              the library decides
 *
 * The whole of x or y must lie in one registered range, or in the heap. In all other cases, and
 * from any other device memory, the library copies or sends the rows. Outputs need no registration.
 *
 * STRUCTS
 *
 * Every struct that is passed by pointer begins with its size, a magic number and the version of
 * the header that it was compiled with. Its initializer macro sets the three and zeroes the rest.
 * Zero means the default if a field has one. Fields are only ever appended: the library reads the
 * part that the caller's header knows. A field that this version does not serve must be zero;
 * otherwise the call is refused with hepErrorUnsupported.
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

/** A CUDA stream: the same type as `cudaStream_t` and `CUstream`. NULL is the legacy default
    stream. On the host backend it is always NULL. */
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
  hepErrorOutOfMemory = 4,     /**< the system or the device has no host or device memory left */
  hepErrorSystem = 5,          /**< a system call failed */
  hepErrorCuda = 6,            /**< a CUDA call failed */
  hepErrorMismatch = 7,        /**< two ranks disagree on version, config, topology or a call */
  hepErrorUnreachable = 8,     /**< two devices cannot map each other's memory */
  hepErrorTimeout = 9,         /**< a wait for a peer expired */
  hepErrorAborted = 10,        /**< a rank aborted the communicator */
  hepErrorPeerLost = 11,       /**< a peer's process is gone, or the peer has left */
  hepErrorInternal = 12,       /**< a bug in this library; please report it */
  hepErrorOverflow = 13,       /**< rows did not fit in the capacity of a dispatch */
  hepErrorNetwork = 14         /**< the network between domains failed, or does not connect them */
} hepResult_t;

/** The name of a result, for example "hepErrorTimeout". Never NULL; static storage. Thread-safe. */
HEP_API const char* hepGetErrorString(hepResult_t result);

/**
 * The sentence that explains the latest call of this thread that did not return `hepSuccess`, or
 * the latest error that `hepCommGetAsyncError` told this thread. An empty string if there was none.
 * Valid until the thread's next failing call. Thread-safe.
 */
HEP_API const char* hepGetLastError(void);

/** The version of the loaded library, in the form of `HEP_VERSION`. Needs no GPU. Thread-safe. */
HEP_API hepResult_t hepGetVersion(int* version);

/* ------------------------------------------------------------------------------ configuration */

typedef enum {
  hepBackendAuto = 0, /**< cuda if a usable device exists, otherwise host */
  hepBackendCuda = 1, /**< NVIDIA GPUs of compute capability 9.0 and newer */
  hepBackendHost = 2  /**< plain host memory, shared between the processes of one machine */
} hepBackend_t;

typedef enum {
  hepTypeDefault = 0, /**< the communicator's type, or hepTypeBfloat16 in its config */
  hepTypeBfloat16 = 1,
  hepTypeFloat16 = 2,
  hepTypeFloat32 = 3,
  hepTypeFloat8E4M3 = 4, /**< has no infinities; the largest number is 448 */
  hepTypeFloat8E5M2 = 5,
  hepTypeBytes = 6 /**< opaque elements of one byte */
} hepDataType_t;

/** Levels of log messages. A message is delivered if its level is at most HEP_LOG. */
typedef enum {
  hepLogNone = 0,
  hepLogError = 1,
  hepLogWarning = 2,
  hepLogInfo = 3,
  hepLogDebug = 4
} hepLogLevel_t;

/**
 * Receives a log message, without a line end. Any thread may call it. No thread calls it after the
 * `hepCommDestroy` of the communicator that brought it has returned.
 */
typedef void (*hepLogCallback_t)(hepLogLevel_t level, const char* message, void* context);

#define HEP_CONFIG_MAGIC 0x48455043u

/**
 * What a communicator is for. All ranks give the same values, except `log` and `log_context`.
 * Environment variables override `backend` and the settings: `hep_info --settings` lists the
 * variables and their ranges.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;

  /* The shape of the work. */
  int32_t backend;    /**< hepBackend_t */
  int32_t type;       /**< hepDataType_t of the rows; 0: hepTypeBfloat16 */
  int32_t max_tokens; /**< most tokens that a rank dispatches in one batch, 1 to 65536 */
  /** H, in elements, of calls that do not say otherwise. A row (H * element size) is a multiple of
      16 bytes in each type, and at most 64 KiB in `type`. */
  int32_t hidden;
  int32_t num_experts; /**< E, a multiple of the number of ranks, at most 4096 */
  int32_t max_top_k;   /**< most selections of a token, 1 to 32; 0: 8 */
  int32_t scale_bytes; /**< bytes of scales beside a row, at most 16384; 0: no scales */
  /** Most tokens that a rank dispatches in one batch of a low-latency routing, 1 to 65536, more or
      less than max_tokens. 0: there are no such routings. A small value makes an update in the call
      of a dispatch part of its launch: see hepDispatchArgs_t.update. */
  int32_t low_latency_tokens;
  int64_t heap_bytes; /**< memory for `hepMemAlloc`, at most 2^40; 0: none */

  /* Settings. 0: the library chooses. */
  /** Bound of every wait for a peer on a communicator (operations and registrations), in
      milliseconds, at most 3600000; 0: 30000. */
  int32_t timeout_ms;
  /** Most SMs (blocks) that an operation occupies, at least 2; 0: 64. Each call takes the fewest
      that a model of the device expects to be at most 3 % slower than the most. Ranks that share a
      device share its SMs. For low-latency routings see low_latency_blocks. */
  int32_t sm_budget;
  /** Independent sequences of operations, 1 to 4; 0: 1. Each takes memory of its own. Low-latency
      routings have four more. */
  int32_t lanes;
  /** L, the ranks that map each other's memory; it divides R. The ranks 0 to L - 1 are a domain,
      the next L are another, and so on. A network joins several domains. 0: all ranks, or on the
      host backend the ranks of each host if there are several. The cuda backend serves one. */
  int32_t domain_size;

  /* Tuning, as in Hybrid-EP. 0: the library chooses, within sm_budget. Every call takes a count
     that is set. */
  /** Threads of a block of the routing kernel, a multiple of 32. The library uses fewer if the
      counters of many experts leave no room. */
  int32_t routing_threads;
  int32_t routing_blocks;      /**< blocks of the routing kernel */
  int32_t dispatch_stages;     /**< most rows in flight in a dispatch block; they must fit there */
  int32_t dispatch_blocks;     /**< blocks of the dispatch kernel */
  int32_t combine_load_stages; /**< most rows in flight towards a reducer; as many as fit */
  /** Rows in flight from shared memory to a peer, 1 to 4, if nothing is reduced. Reducers store
      from registers. */
  int32_t combine_store_stages;
  /** Blocks of the combine kernel, both halves together. */
  int32_t combine_blocks;

  /** Receives the log messages of the process, until this communicator or a later one with a
      callback ends. NULL: they go to standard error. */
  hepLogCallback_t log;
  void* log_context;

  /* Types other than `type`. A dispatch may carry any type whose rows have at most `row_bytes` of
     hepLimits_t. That is the larger one of a row in `type` and a row in `combine_type`; a row in
     `combine_type` that exceeds 64 KiB does not count. */
  /** hepDataType_t of combine: BF16, FP16 or FP32. 0: `type` if it is one of them, otherwise
      hepTypeBfloat16. */
  int32_t combine_type;
  /** hepDataType_t of partial sums. hepTypeFloat32 makes room for partial sums in FP32, which take
      twice the bytes. 0: hepTypeBfloat16. */
  int32_t partial_type;

  /** SMs (blocks) that an operation of a low-latency routing occupies, at least 2. 0: the library
      chooses, within sm_budget. The block counts above do not apply to low-latency routings. */
  int32_t low_latency_blocks;
  /** Bound of the creation of a communicator as a whole, in milliseconds, at most 3600000; 0:
      30000. `timeout_ms` does not bound it. */
  int32_t init_timeout_ms;

  /** With several domains: bytes of each of the four rings of a lane. Through them rows go to the
      other domains, and sums come back. Each ring must hold a row for each other domain, with its
      sums of min(max_top_k, L) ranks. 0: 64 MiB. */
  int64_t network_bytes;
} hepConfig_t;

#define HEP_CONFIG_INITIALIZER HEP_INITIALIZER(hepConfig_t, HEP_CONFIG_MAGIC)

/**
 * Checks a config for `num_ranks` ranks, as the `hepCommInit...` functions do. It needs no GPU, and
 * so it does not check the number of SMs. `hepGetLastError` names the rule and the values.
 * Thread-safe.
 */
HEP_API hepResult_t hepConfigCheck(const hepConfig_t* config, int num_ranks);

#define HEP_WORKSPACE_MAGIC 0x48455057u

/**
 * Device memory that a communicator takes on each rank, in bytes. On the cuda backend the window,
 * the scratch and the memory of each routing are each rounded up to the driver's unit of allocation
 * (mostly 2 MiB).
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  uint64_t total_bytes; /**< the window: the next five, low_latency_bytes and network_bytes */
  uint64_t token_bytes; /**< published rows, scales and weights: max_tokens rows a lane */
  /** Partial sums on their way back, max_tokens * min(max_top_k, L) rows a lane, and gradients of
      the weights. L is the number of ranks of a domain, and R without several domains. */
  uint64_t partial_bytes;
  uint64_t record_bytes;  /**< routing records, which arrive from every rank of the domain */
  uint64_t signal_bytes;  /**< signals between ranks */
  uint64_t heap_bytes;    /**< memory for `hepMemAlloc` */
  uint64_t routing_bytes; /**< in addition: for as many routings as were alive at once on a lane */
  uint64_t scratch_bytes; /**< in addition, once: counters and scratch of the kernels */
  /** The low-latency lanes; 0 without them. They have what the other lanes have, for
      low_latency_tokens tokens, and tokens and partial sums twice. If an update can be part of a
      dispatch's launch (hepDispatchArgs_t.update), the choices of all ranks come in addition: 16
      bytes for each token, and 24 for each selection of an even max_top_k. */
  uint64_t low_latency_bytes;
  uint64_t low_latency_routing_bytes; /**< routing_bytes of a low-latency routing */
  /** What serves the other domains, of all lanes that are not of low latency: rings, records of
      their ranks, and max_tokens * min(max_top_k, D - 1) sums. 0 with one domain. */
  uint64_t network_bytes;
} hepWorkspace_t;

#define HEP_WORKSPACE_INITIALIZER HEP_INITIALIZER(hepWorkspace_t, HEP_WORKSPACE_MAGIC)

/** Tells how much device memory a communicator of this config takes, without a GPU. It knows of no
    hosts: domain_size 0 stands for one domain. Thread-safe. */
HEP_API hepResult_t hepWorkspaceSize(const hepConfig_t* config, int num_ranks,
                                     hepWorkspace_t* workspace);

/* ------------------------------------------------------------------------------ communicators */

#define HEP_UNIQUE_ID_BYTES 128

/** Names one rendezvous and carries its secret. Plain bytes, to be copied to every rank. */
typedef struct {
  unsigned char bytes[HEP_UNIQUE_ID_BYTES];
} hepUniqueId_t;

/**
 * Opens a rendezvous in this process and writes its id. The caller passes the id to every rank by
 * any means. The id is a secret: a program that has it can take part. It serves one communicator; a
 * rank that brings it a second time waits, and then gets hepErrorTimeout. The process must live at
 * least until the `hepCommInitRank` of every rank has returned. Returns hepErrorSystem if no socket
 * could be opened. Thread-safe.
 */
HEP_API hepResult_t hepGetUniqueId(hepUniqueId_t* id);

/**
 * Creates this rank's communicator. Collective: returns when all ranks have come, or with an error
 * after `init_timeout_ms`. On the cuda backend the rank is bound to the calling thread's current
 * device. Thread-safe.
 *
 * comm       receives the communicator; NULL on failure
 * num_ranks  R, 1 to 72
 * id         from `hepGetUniqueId` of any one rank
 * rank       this rank, 0 <= rank < R
 * config     copied
 *
 *   what is wrong                           every rank gets
 *   the config of one rank                  an error that names the rank and the field. The rank
 *                                           itself waits for the others for 10 s at most
 *   two ranks disagree                      an error that names the ranks and the field
 *   a rank does not come                    after init_timeout_ms an error that names the rank
 */
HEP_API hepResult_t hepCommInitRank(hepComm_t* comm, int num_ranks, const hepUniqueId_t* id,
                                    int rank, const hepConfig_t* config);

/**
 * Creates the communicators of `num_ranks` ranks of this process in one call. Thread-safe.
 *
 * comms    [num_ranks], receives the communicators; all NULL on failure, unless `num_ranks` is out
 *          of range
 * devices  [num_ranks], CUDA ordinals, rank by rank; a device may appear several times (for tests);
 *          NULL: 0, 1, 2, ...; the host backend does not read it
 */
HEP_API hepResult_t hepCommInitAll(hepComm_t* comms, int num_ranks, const int* devices,
                                   const hepConfig_t* config);

/**
 * An all-gather among the ranks of the future communicator. It copies `bytes` bytes at `send` of
 * every rank to `receive` [num_ranks][bytes] of every rank, both in host memory, and returns 0 on
 * success. The library does not bound how long it waits.
 */
typedef int (*hepAllGather_t)(const void* send, void* receive, size_t bytes, void* context);

/**
 * Creates this rank's communicator over an all-gather of the caller's (MPI, Gloo, a store, ...).
 * Collective. The library calls `all_gather` once, on this thread, to agree on a rendezvous, and
 * does not use it after the call has returned. It calls `all_gather` whatever else is wrong, so
 * that all ranks learn of an error. Only a rank whose `all_gather` is NULL or whose `num_ranks` is
 * out of range cannot take part: the others then wait in their `all_gather` as long as that waits.
 * Returns hepErrorSystem if `all_gather` returns non-zero. Thread-safe.
 */
HEP_API hepResult_t hepCommInitCallback(hepComm_t* comm, int num_ranks, int rank,
                                        hepAllGather_t all_gather, void* context,
                                        const hepConfig_t* config);

/**
 * Creates this rank's communicator over an existing NCCL communicator, with its ranks and its
 * device. Collective. The library opens NCCL at run time and uses it once, to agree on a
 * rendezvous; `nccl` may be destroyed afterwards. Needs a CUDA device, on either backend. Returns
 * hepErrorUnsupported if NCCL cannot be opened. If a call is refused before NCCL is used (`comm` or
 * `nccl` is NULL, or NCCL cannot be opened), the peers wait for `init_timeout_ms`.
 * Thread-safe.
 */
HEP_API hepResult_t hepCommInitNccl(hepComm_t* comm, struct ncclComm* nccl,
                                    const hepConfig_t* config);

/**
 * Frees a communicator. Local: never waits for peers, and safe after errors. NULL is legal and does
 * nothing. Returns hepErrorInvalidUsage if routings of it are alive.
 *
 * Before the call
 *   - its routings are destroyed;
 *   - its operations are done; operations that still run are ended as by `hepCommAbort`;
 *   - other work that uses its memory is done: kernels that read what a `hepRoutingView_t` points
 *     to, or that write to memory of `hepMemAlloc`;
 *   - graphs with its operations are launched no more.
 *
 * On the cuda backend the call waits until the communicator's operations have left the device, and
 * thus for what comes before them on their streams. It waits for all work of the device in two
 * cases: an operation of this communicator has been captured, or memory is shared by cudaIpc
 * (src/README.md says why). If the CUDA context has died, the call returns, too. It frees host
 * memory, threads and connections; device memory that CUDA does not give back stays until the
 * process ends.
 *
 * The peers are told that this rank has left. That is no failure. Their operations go on, except
 * those that wait for something that this rank had not done yet: these fail at once with
 * hepErrorPeerLost. The same happens when a process that has not destroyed its communicator returns
 * from main or calls exit(). Peers that have the memory of this rank mapped can still read it,
 * except in other processes if it is shared by cudaIpc.
 */
HEP_API hepResult_t hepCommDestroy(hepComm_t comm);

/**
 * Ends the running operations of this communicator early: kernels that wait for a peer leave. Later
 * operations return hepErrorAborted, unless the communicator had failed before. The call does not
 * wait for the peers, but tells them: their operations and calls end in the same way, and their
 * failure records name this rank. The outputs of operations that were running are undefined.
 * `hepCommDestroy` is still needed. From any thread at any time.
 */
HEP_API hepResult_t hepCommAbort(hepComm_t comm);

/** The number of ranks. */
HEP_API hepResult_t hepCommCount(hepComm_t comm, int* num_ranks);

/** This rank. */
HEP_API hepResult_t hepCommUserRank(hepComm_t comm, int* rank);

/** The CUDA ordinal of the rank's device; -1 on the host backend. */
HEP_API hepResult_t hepCommDevice(hepComm_t comm, int* device);

/** The backend that was chosen; never hepBackendAuto. */
HEP_API hepResult_t hepCommBackend(hepComm_t comm, hepBackend_t* backend);

#define HEP_LIMITS_MAGIC 0x4845504cu

/** What a communicator can do, and what the library chose for it. */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t max_tokens;        /**< tokens of a batch */
  int32_t max_top_k;         /**< selections of a token */
  int32_t num_experts;       /**< E */
  int32_t num_local_experts; /**< EL */
  int64_t row_bytes;         /**< most bytes of a dispatched row */
  /** R * max_tokens. Also the most rows of an expert, unless tokens select an expert twice. */
  int64_t max_flat_rows;
  int64_t max_expert_rows;    /**< R * max_tokens * max_top_k, before alignment */
  int32_t routing_blocks;     /**< SMs that `hepRoutingUpdate` occupies; host backend: 0 */
  int32_t dispatch_blocks;    /**< most SMs that a `hepDispatch` occupies; host backend: 0 */
  int32_t combine_blocks;     /**< most SMs that a `hepCombine` occupies; host backend: 0 */
  int32_t timeout_ms;         /**< bound of every wait for a peer on the communicator */
  int32_t lanes;              /**< for routings of hepModeThroughput */
  int32_t low_latency_lanes;  /**< for routings of hepModeLowLatency: 4, or 0 without them */
  int32_t low_latency_tokens; /**< what max_tokens is for low-latency routings */
  int32_t low_latency_blocks; /**< most SMs of a low-latency operation; host backend: 0 */
  int32_t num_domains;        /**< D */
  int32_t domain_size;        /**< L, ranks of a domain */
  /** SMs that a dispatch or a combine of max_tokens tokens occupies, by hepLayout_t: rows of `type`
      that are not quantised, and expert outputs of `combine_type` in any memory. Host backend: 0 */
  int32_t layout_dispatch_blocks[3];
  int32_t layout_combine_blocks[3];
} hepLimits_t;

#define HEP_LIMITS_INITIALIZER HEP_INITIALIZER(hepLimits_t, HEP_LIMITS_MAGIC)

/** Tells a communicator's limits. */
HEP_API hepResult_t hepCommLimits(hepComm_t comm, hepLimits_t* limits);

/**
 * Allocates `bytes` bytes from the communicator's heap (`heap_bytes` of its config). The peers have
 * the heap mapped and read x and y there in place (ZERO COPY). Local. The memory is aligned to 256
 * bytes, is not cleared, and lives until `hepMemFree` or `hepCommDestroy`. Returns
 * hepErrorOutOfMemory if no free block of the heap is large enough.
 */
HEP_API hepResult_t hepMemAlloc(hepComm_t comm, size_t bytes, void** pointer);

/**
 * Gives memory back to the heap. The caller makes sure that no enqueued operation uses it. NULL is
 * legal. Returns hepErrorInvalidArgument if `pointer` is not from `hepMemAlloc` of `comm`.
 */
HEP_API hepResult_t hepMemFree(hepComm_t comm, void* pointer);

/**
 * Registers memory that the caller allocated, so that the peers read it in place (ZERO COPY).
 *
 * Collective: all ranks call it, from threads of their own, each with memory of its own or with
 * NULL and 0. It waits for all ranks, at most `timeout_ms`. What is refused on one rank is refused
 * on all: nothing is registered, and all ranks are told the reason.
 *
 * pointer  memory of the rank's device
 * bytes    its size. The ranges of a rank must not overlap. A rank can register 64 ranges
 *
 * On the cuda backend the memory comes from cudaMalloc, or from cuMemCreate with POSIX descriptors
 * (fabric handles if ranks are on several hosts) among its requestedHandleTypes, and is a part of
 * one such allocation. Not during stream capture: CUDA may end the capture because of the attempt.
 * Enqueued operations may go on. On the host backend peers cannot map such memory: the library
 * copies its tokens all the same.
 *
 * The memory stays the caller's. It must not be freed before it is deregistered, or before the
 * communicator is destroyed on all ranks.
 *
 *   result         cause
 *   InvalidUsage   stream capture, or 64 ranges are registered
 *   Unsupported    the memory of a rank cannot be shared
 *   OutOfMemory    host memory ran out on a rank. The communicator has failed
 *   Mismatch       a rank calls hepCommDeregister instead
 *   Timeout, PeerLost, Aborted   the communicator has failed
 */
HEP_API hepResult_t hepCommRegister(hepComm_t comm, void* pointer, size_t bytes);

/**
 * Undoes `hepCommRegister` of the same pointer. No enqueued operation, and no graph that will be
 * launched, may use the memory. Collective in the same way: NULL is legal, and ranks may undo
 * different registrations. When it returns, no peer has the memory mapped any more.
 *
 * Enqueued operations on other memory may go on, with one exception: memory of cudaMalloc, with
 * ranks in several processes. CUDA unmaps such memory only when all work of the device is done. So
 * what any rank has enqueued before must not wait for what another rank enqueues afterwards.
 */
HEP_API hepResult_t hepCommDeregister(hepComm_t comm, void* pointer);

/**
 * Tells whether anything has gone wrong on the device or with the peers. The first line of this
 * list that applies is told; each is the first of its kind on this rank, and stays:
 *
 *   result            what happened                                       the communicator
 *   Timeout, Aborted, a failure (see ERRORS)                              can only be destroyed
 *   PeerLost, Cuda,
 *   Mismatch,
 *   InvalidUsage
 *   InvalidArgument   an expert id was outside [-1, E), and counted       goes on
 *                     as -1; or the map of a token selects more than
 *                     top_k experts
 *   Overflow          the rows of a dispatch with hepOverflowError did    goes on
 *                     not fit
 *   hepSuccess        nothing of the above                                goes on
 *
 * `hepGetLastError` then explains it. Does not wait for the device. From any thread at any time. If
 * the call itself is refused, `*error` is untouched.
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
  hepPhaseBlocks = 1,   /**< waiting for the other blocks of the same kernel */
  hepPhaseRecords = 2,  /**< routing: waiting for a peer's records */
  hepPhaseRows = 3,     /**< dispatch: waiting for a peer to publish its rows */
  hepPhaseWeights = 4,  /**< dispatch: waiting for a peer to publish its weights */
  hepPhaseReaders = 5,  /**< waiting for a peer to have read this rank's rows */
  hepPhaseSlots = 6,    /**< combine: waiting for a peer to free its slots for partial sums */
  hepPhasePartials = 7, /**< combine: waiting for a peer's partial sums or outputs */
  hepPhaseNetwork = 8,  /**< waiting for the network to take or deliver what this rank sends */
  hepPhaseLanding = 9   /**< waiting for what a rank of another domain sends */
} hepPhase_t;

#define HEP_FAILURE_MAGIC 0x48455046u

/**
 * The first failure on this rank. `operation` is hepOperationNone if the failure ended no wait of
 * this rank: the rank aborted, lost a peer or was told by one while it was at rest, its CUDA
 * context died, or a registration failed.
 *
 *   result         missing_rank               expected                    seen
 *   Timeout,       that is gone or did not    the signal that was         the signal that was
 *   PeerLost       come                       waited for                  there
 *   Aborted        that aborted, or that was  likewise                    likewise
 *                  waited for
 *   Cuda           whose CUDA context died    likewise                    likewise
 *   Mismatch       that differs               this rank's top_k or        the other rank's
 *                                             summary of its call, which
 *                                             hepGetLastError tells in
 *                                             words; or T << 32 | K that
 *                                             its routing was made for
 *   InvalidUsage   whose call did not fit     T << 32 | K of the call     T << 32 | K of the
 *                  the executed update                                    executed update; 0 if
 *                                                                         none was
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t result;       /**< hepResult_t: hepSuccess if nothing failed */
  int32_t operation;    /**< hepOperation_t */
  int32_t phase;        /**< hepPhase_t */
  int32_t rank;         /**< this rank */
  int32_t missing_rank; /**< see above; -1 if none */
  uint64_t number;      /**< number of the operation among those of its kind on its lane, from 1 */
  uint64_t expected;    /**< see above */
  uint64_t seen;        /**< see above */
  int32_t mode;         /**< hepMode_t of the lane */
  int32_t lane;         /**< lane of the operation, as in hepRoutingConfig_t */
  /** The rank by way of which the signal comes, if missing_rank is of another domain and this rank
      waited for it itself; otherwise -1. */
  int32_t via_rank;
  int32_t reserved;
} hepFailure_t;

#define HEP_FAILURE_INITIALIZER HEP_INITIALIZER(hepFailure_t, HEP_FAILURE_MAGIC)

/** Tells what failed first. Does not wait for the device. From any thread at any time. */
HEP_API hepResult_t hepCommGetFailure(hepComm_t comm, hepFailure_t* failure);

/* ------------------------------------------------------------------------------------- routing */

/** What the operations of a routing are made for. Arguments, layouts, order and results are the
    same in both modes. */
typedef enum {
  hepModeThroughput = 0, /**< bandwidth with few SMs; batches of at most max_tokens tokens a rank */
  /** Little time with more SMs; batches of at most low_latency_tokens tokens a rank. Operations can
      be split in halves, and four batches can be under way at once. */
  hepModeLowLatency = 1
} hepMode_t;

#define HEP_ROUTING_CONFIG_MAGIC 0x48455052u

/** What a routing is for. All ranks give the same values, except `memory` and `memory_bytes`. */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  /** Each expert's block starts at a multiple of this number of rows, 1 to 4096; 0: 1. */
  int32_t alignment;
  /** hepMode_t. hepModeLowLatency needs low_latency_tokens in the communicator's config. */
  int32_t mode;
  /** The lane that the routing lives on, among those of its mode: from 0, below `lanes` of the
      config; in hepModeLowLatency below 4. */
  int32_t lane;

  /* Memory of the caller's. The library makes no call of CUDA to create or destroy such a routing:
     it may be created while streams are captured, and a graph that uses it owns what it uses if it
     owns the memory. */
  /** Device memory of the rank, aligned to 256 bytes; its contents do not matter. No two routings
      have the same. The caller keeps it until the routing is destroyed, all operations on the
      routing are done, and graphs with them are launched no more. NULL: the library's memory. */
  void* memory;
  uint64_t memory_bytes; /**< its size, at least that of `hepRoutingMemoryBytes` */
  /** Most tokens of an update, 1 to max_tokens (in hepModeLowLatency low_latency_tokens) of the
      communicator's config; 0: that. */
  int32_t max_tokens;
  int32_t max_top_k; /**< most top_k of an update, 1 to the config's; 0: that */
} hepRoutingConfig_t;

#define HEP_ROUTING_CONFIG_INITIALIZER HEP_INITIALIZER(hepRoutingConfig_t, HEP_ROUTING_CONFIG_MAGIC)

/**
 * Tells the bytes of device memory that a routing takes: `memory_bytes` of its config. Reads mode,
 * max_tokens and max_top_k of `config`, which may be NULL for the defaults. Local.
 */
HEP_API hepResult_t hepRoutingMemoryBytes(hepComm_t comm, const hepRoutingConfig_t* config,
                                          uint64_t* bytes);

/**
 * Creates a routing and its device memory (`routing_bytes` of `hepWorkspaceSize`, in
 * hepModeLowLatency `low_latency_routing_bytes`). Any number of routings may share a lane. Local.
 * `config` may be NULL for the defaults. The call is legal while streams are being captured, and
 * becomes no part of their graphs: the memory is taken at once, and lives until the communicator is
 * destroyed. If the config has `memory`, the routing takes that, and the first update refuses it if
 * it lies elsewhere than on the rank's device.
 */
HEP_API hepResult_t hepRoutingCreate(hepRouting_t* routing, hepComm_t comm,
                                     const hepRoutingConfig_t* config);

/**
 * Frees a routing. Local, waits for nothing. NULL is legal. Work that reads its memory, such as
 * what a `hepRoutingView_t` points to, must be done, or must come before the next operation of the
 * lane, which may use the memory again. Returns hepErrorInvalidUsage between the halves of an
 * operation of this routing, unless the communicator has failed.
 */
HEP_API hepResult_t hepRoutingDestroy(hepRouting_t routing);

typedef enum {
  hepIndexInt32 = 0,
  hepIndexInt64 = 1,
  /** A byte map [num_tokens][E]: an expert is selected if its byte is not 0. The k of a selection
      is its rank among the token's selections, by ascending expert. */
  hepIndexMap = 2
} hepIndexType_t;

#define HEP_UPDATE_MAGIC 0x48455055u

/**
 * The router's choice for the tokens of a rank. `indices` is device memory, read in stream order.
 *
 *   choice                                              counts as
 *   -1                                                  no selection
 *   the same expert twice in a token                    two expert rows and one flat row
 *   an id outside [-1, E)                               -1; `hepCommGetAsyncError` reports it
 *   a token whose map selects fewer than top_k experts  these selections
 *   a token whose map selects more than top_k experts   the first top_k; reported likewise
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  /** [num_tokens][top_k] expert ids, aligned to their size, or a byte map (hepIndexMap). Ignored if
      num_tokens is 0. */
  const void* indices;
  /** T, 0 to max_tokens (of a low-latency routing: low_latency_tokens) of the communicator's
      config, or of the routing's if that has its own. Ranks may differ. Replays of a captured
      graph have the T of its capture. A smaller batch gives -1 for all selections of the tokens
      past its end; these tokens then have no rows. */
  int64_t num_tokens;
  /** K, 1 to max_top_k of the communicator's config, or of the routing's if that has its own; the
      same on all ranks, or the communicator fails with hepErrorMismatch. */
  int32_t top_k;
  int32_t index_type; /**< hepIndexType_t; ranks may differ */
} hepUpdate_t;

#define HEP_UPDATE_INITIALIZER HEP_INITIALIZER(hepUpdate_t, HEP_UPDATE_MAGIC)

/**
 * Digests the router's choice for a batch and exchanges it with all ranks. Collective. Until its
 * next update the routing serves any number of dispatches and combines, in any order. The struct is
 * read during the call only. Returns hepErrorInvalidUsage between the halves of an operation of the
 * lane.
 */
HEP_API hepResult_t hepRoutingUpdate(hepRouting_t routing, const hepUpdate_t* update,
                                     hepStream_t stream);

/** How many rows a dispatch had, on the device. */
typedef struct {
  /** The capacity that takes all rows: rows that the layout needs, with the padding rows of
      expert-major; in expert-padded the rows of the fullest expert. */
  int64_t needed;
  int64_t written;  /**< min(needed, capacity) */
  int64_t overflow; /**< 1 if needed > capacity, otherwise 0 */
} hepRowCounters_t;

#define HEP_ROUTING_VIEW_MAGIC 0x48455056u

/** Device memory of a routing, read-only. The addresses are constant until the routing is
    destroyed. The contents are valid in stream order, once the routing has been updated. */
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

/** Tells the device addresses of a routing's results. */
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
  int64_t num_padded_rows;    /**< rows that the expert-major layout needs, with padding */
  int64_t max_expert_rows;    /**< max of tokens_per_expert: capacity of the expert-padded layout */
  /** The most selections that a token of any rank made in the update, those past top_k of a map
      included: the top_k that cuts nothing. The same on all ranks. */
  int64_t max_selections;
} hepRoutingCounts_t;

#define HEP_ROUTING_COUNTS_INITIALIZER HEP_INITIALIZER(hepRoutingCounts_t, HEP_ROUTING_COUNTS_MAGIC)

/**
 * Waits until all work that is enqueued on `stream` is done and returns the counts of the latest
 * update, so that outputs can be allocated exactly (CAPACITY). Local. Not during stream capture.
 * Returns hepErrorInvalidUsage before the first update, during capture, or between the halves of a
 * dispatch with an update.
 */
HEP_API hepResult_t hepRoutingQuery(hepRouting_t routing, hepRoutingCounts_t* counts,
                                    hepStream_t stream);

/* ------------------------------------------------------------------------ dispatch and combine */

typedef enum {
  /** [flat rows][H]. For combine, the caller has summed the results of a row's local experts into
      one row. */
  hepLayoutFlat = 0,
  hepLayoutExpertMajor = 1, /**< [expert rows, each expert's block aligned][H] */
  /** [EL][capacity][H]: `capacity` rows an expert, in the order of expert-major. The first rows of
      each expert are in use. */
  hepLayoutExpertPadded = 2
} hepLayout_t;

typedef enum {
  hepOverflowDrop = 0, /**< rows past the capacity are not written; the row counters tell */
  /** In addition `hepCommGetAsyncError` tells the first overflow on this rank, as hepErrorOverflow.
      The communicator stays usable. */
  hepOverflowError = 1
} hepOverflow_t;

/**
 * How a dispatch quantises x from BF16 to hepTypeFloat8E4M3 on its way to the peers. The peers
 * receive the quantised rows and their scales. Every block of 128 consecutive elements of a row
 * (the last may be shorter) has a scale. All steps are FP32, rounded to nearest even. amax is the
 * largest |x| of the block's finite elements.
 *
 *   scale = amax / 448, or 1 if amax is 0;
 *           with hepQuantizeUe8m0 then rounded up to a power of two, at least 2^-127
 *   q     = the FP32 quotient x / scale, rounded a second time, to E4M3, to nearest even
 *
 * |q| is at most 448, also for infinities. Zero keeps its sign. NaN becomes 0x7f.
 */
typedef enum {
  hepQuantizeNone = 0,
  hepQuantizeFloat32 = 1, /**< scales in FP32: 4 bytes a block */
  hepQuantizeUe8m0 = 2    /**< scales as their exponent of two, biased by 127: a byte a block */
} hepQuantization_t;

#define HEP_DISPATCH_ARGS_MAGIC 0x48455044u

/**
 * A dispatch. Pointers are device memory of this rank. Outputs may be any such memory, without
 * registration. `rows` and `x` are aligned to 16 bytes. Outputs must not overlap each other or the
 * inputs; the library does not check that. An optional output is not written if NULL.
 *
 * Pointers to arrays without elements are ignored, whatever they are: those to arrays of [T] if T
 * is 0, and those to arrays of [capacity] if capacity is 0.
 *
 *   output rows                                          contents
 *   rows of tokens, place below capacity                 the token's row
 *   rows of tokens, other places                         dropped: not written
 *   expert-major: padding at the end of an expert's      zeros, with scales and weight 0, source -1
 *   block, place below capacity                          and token -1
 *   expert-major, flat: past the last row that the       untouched
 *   layout needs
 *   expert-padded: past an expert's last row             untouched; grouped GEMMs that are masked
 *                                                        by `expert_rows` do not read it
 *
 * The expert-padded layout holds EL * capacity rows: for [capacity] below read [EL][capacity]
 * there.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t layout;   /**< hepLayout_t */
  int32_t overflow; /**< hepOverflow_t */
  /** hepDataType_t of x and rows, the same on all ranks, of rows that fit (see hepConfig_t); 0: the
      communicator's. */
  int32_t type;
  /** hepQuantization_t, the same on all ranks. x is BF16, and `type` must be hepTypeFloat8E4M3. */
  int32_t quantize;

  /* Inputs. */
  const void* x; /**< [T][H] */
  /** [T][K], or NULL: every weight is 1. Either all ranks with tokens give them or none does;
      otherwise hepErrorMismatch. */
  const float* weights;
  /** [T][scale_bytes], forwarded bit for bit, or NULL. Either all ranks with tokens give them or
      none does; otherwise hepErrorMismatch. NULL if x is quantised: then they are computed,
      followed by zeros to scale_bytes. */
  const void* scales;

  /* Outputs. */
  void* rows; /**< [capacity][H] */
  /** Rows that `rows` and the arrays below hold. 0: this rank takes no rows. */
  int64_t capacity;
  /** Optional. Expert layouts: [capacity]. Flat: [capacity][K], the weights of the selections of
      this rank's experts, 0 elsewhere. */
  float* row_weights;
  int32_t* row_experts; /**< optional, flat only: [capacity][K] local expert ids, -1 elsewhere */
  int32_t* row_sources; /**< optional: [capacity] source rank of each row */
  int32_t* row_tokens;  /**< optional: [capacity] token of each row, an index on its source rank */
  /** Optional, flat only: [gather_capacity] the flat rows sorted by expert. For each place of the
      expert-major layout it holds the flat row that belongs there, or -1 for padding and for
      dropped rows. */
  int32_t* gather;
  int64_t gather_capacity; /**< entries that `gather` holds; those past it are not written; 0 if
                                and only if `gather` is NULL */
  /** Optional, expert layouts only: [EL] rows of each expert that were written, without padding.
      tokens_per_expert, or less if rows were dropped. */
  int32_t* expert_rows;

  /* Scales of the output rows. */
  /** Optional, if tokens have scales. Row-major: [capacity][scale_bytes]. Column-major: there are
      C = scale_bytes / scale_element_bytes columns, and element (row r, column c) is number
      c * row_scales_stride + r; expert-padded: [EL][C][row_scales_stride], by the rows of each
      expert. */
  void* row_scales;
  /** 0: row-major. Otherwise elements between the columns: at least capacity, in bytes a multiple
      of 16. */
  int64_t row_scales_stride;
  /** Of column-major scales: 1, 2 or 4, a divisor of scale_bytes, to which row_scales is aligned;
      otherwise 0. */
  int64_t scale_element_bytes;

  /* Update. */
  /** NULL: none. Otherwise the routing is first updated as by `hepRoutingUpdate`, and T and K above
      are those of this update. The call is refused as a whole, or not at all. The struct is read
      before the call returns. Either all ranks give one or none does: ranks that differ wait for
      each other until timeout_ms.

      On the cuda backend both are one launch if the routing is a low-latency routing and the
      choices of all ranks fit in the shared memory of a block: R * low_latency_tokens * max_top_k *
      2 bytes, counters, and four rows of `row_bytes` of hepLimits_t, in 220 KiB. (512 tokens, top-8
      and H = 7168 in BF16: 19 ranks at most.) Otherwise they are two launches. A map of experts
      takes one more in either case. */
  const hepUpdate_t* update;

  /** H of this call, the same on all ranks; 0: the config's. Its rows, in `type`, are a multiple of
      16 bytes, and have at most `row_bytes` of hepLimits_t. */
  int64_t hidden;

  /* Counts. They are of this call, and nothing overwrites them later. They are written whatever T
     and capacity are. */
  /** Optional, expert-major only: [EL] rows of each expert's block that were written, with padding:
      the group sizes of a grouped GEMM. The offsets of the next block and of this one, each at most
      capacity, differ by it; the sum is `written` of the row counters. */
  int64_t* group_sizes;
  hepRowCounters_t* row_counters; /**< optional: [1], aligned to 8 bytes */

  /** [T][E]: in place of `weights`, a weight for each token and expert. A selection has that of its
      expert; the others are not read. It counts as giving weights: some ranks may give these, and
      others `weights`. */
  const float* dense_weights;
} hepDispatchArgs_t;

#define HEP_DISPATCH_ARGS_INITIALIZER HEP_INITIALIZER(hepDispatchArgs_t, HEP_DISPATCH_ARGS_MAGIC)

/**
 * Brings every token to the ranks of its selected experts. Collective: all ranks call it on the
 * routing of the same update, with the same layout, type, hidden and quantisation; otherwise the
 * communicator fails with hepErrorMismatch. When it is done, in stream order, the caller may reuse
 * `x` and all other arguments. The struct is read during the call only. The routing keeps `weights`
 * for a later combine in weight mode hepWeightsDispatched. Returns hepErrorInvalidUsage before the
 * routing's first update, or between the halves of an operation of the lane.
 */
HEP_API hepResult_t hepDispatch(hepRouting_t routing, const hepDispatchArgs_t* args,
                                hepStream_t stream);

/**
 * The first half of a dispatch on a low-latency routing: it makes known what the peers need of this
 * rank. It waits at most until the peers are done with earlier operations of the lane. Collective,
 * like all halves: either all ranks split an operation or none does. It copies x (or quantises it)
 * wherever x lies, so that the second half waits for nobody to read it.
 *
 *   between the halves               rule
 *   other operations of the lane     none, on this routing or another
 *   operations of other lanes        any
 *   inputs and outputs               belong to the library until the second half is done, in stream
 *                                    order
 *   args                             read during this call only
 *
 * `hepDispatchReceive` completes it, on any stream on which the caller has ordered it after the
 * first half, with the arguments given here. Both halves together do exactly what `hepDispatch`
 * does. They may be captured in one CUDA graph or in two. Two graphs are replayed equally often, in
 * turn. Returns hepErrorUnsupported for a routing of hepModeThroughput, and if network_bytes of the
 * config holds no two batches, otherwise as `hepDispatch`.
 */
HEP_API hepResult_t hepDispatchSend(hepRouting_t routing, const hepDispatchArgs_t* args,
                                    hepStream_t stream);

/**
 * The second half of a dispatch: waits for what the peers have sent, and writes the outputs.
 * Returns hepErrorInvalidUsage unless `hepDispatchSend` was the routing's latest operation.
 */
HEP_API hepResult_t hepDispatchReceive(hepRouting_t routing, hepStream_t stream);

typedef enum {
  hepWeightsNone = 0, /**< plain sum */
  /** The weights that the routing's latest dispatch with weights carried. A flat row stands for all
      its selections: its weight is the FP32 sum of theirs, in ascending (expert, k) order. */
  hepWeightsDispatched = 1,
  hepWeightsRow = 2 /**< `row_weights`, one for each row of y */
} hepWeightMode_t;

#define HEP_COMBINE_ARGS_MAGIC 0x48455042u

/**
 * A combine. Pointers are device memory of this rank, without registration. `y` and `out` are
 * aligned to 16 bytes and must not overlap. Pointers to arrays without elements are ignored, as in
 * hepDispatchArgs_t.
 */
typedef struct {
  size_t size;
  uint32_t magic;
  uint32_t version;
  int32_t layout;      /**< hepLayout_t of y */
  int32_t weight_mode; /**< hepWeightMode_t; the same on all ranks */
  /** hepDataType_t of y and out, the same on all ranks: BF16, FP16 or FP32; 0: the communicator's
      combine_type. */
  int32_t type;
  /** hepDataType_t of partial sums, the same on all ranks: hepTypeBfloat16, or hepTypeFloat32 if
      the communicator has it; 0: the communicator's. */
  int32_t partial_type;

  /* Inputs. */
  /** [capacity][H] expert outputs, at the places that dispatch gave; expert-padded:
      [EL][capacity][H]. Padding rows are not read, whatever they hold. */
  const void* y;
  /** Rows that y holds, in expert-padded rows of each expert. Further rows count as dropped. */
  int64_t capacity;
  /** For hepWeightsRow, one for each row in each layout: [capacity], expert-padded [EL][capacity].
      Otherwise NULL. */
  const float* row_weights;

  /* Output. */
  void* out; /**< [T][H] in the tokens' order */

  /* Gradients of the weights, in a backward pass. Either every rank passes both pointers or none
     does; otherwise hepErrorMismatch. Ranks without rows or tokens may pass NULL for what they
     lack. */
  /** Flat: [capacity][K], read where the row has selections of this rank's experts. Expert layouts:
      [capacity], expert-padded [EL][capacity]. */
  const float* row_gradients;
  /** [T][K] the tokens' gradients: those of the selections' rows, bit for bit; 0 if nothing was
      selected or the row is dropped. */
  float* gradients;

  /** H of this call, the same on all ranks; 0: the config's. Its rows, in `type` and in
      `partial_type`, are a multiple of 16 bytes. Its partial sums have at most as many bytes as
      those of the config's hidden in the config's partial_type. */
  int64_t hidden;

  /** [T][E]: in place of `gradients`, the gradients by expert, and 0 where nothing was selected or
      the row is dropped. If a token selects an expert more than once, its gradients are added in
      FP32, in ascending k. It counts as giving gradients: some ranks may give this, and others
      `gradients`. */
  float* dense_gradients;
} hepCombineArgs_t;

#define HEP_COMBINE_ARGS_INITIALIZER HEP_INITIALIZER(hepCombineArgs_t, HEP_COMBINE_ARGS_MAGIC)

/**
 * Brings the experts' results back and sums them. Collective: all ranks call it on the routing of
 * the same update, with the same layout, weight mode, types and hidden; otherwise the communicator
 * fails with hepErrorMismatch. When it is done, in stream order, the caller may reuse all
 * arguments. The struct is read during the call only.
 *
 *   step                              numbers
 *   contributions of one rank to a    taken in ascending (expert, k) order, in FP32: the first
 *   token                             gives s = w * y, each further one s = fma(w, y, s). In mode
 *                                     hepWeightsNone w is 1 and the products are exact
 *   dropped rows                      left out; a rank whose rows were all dropped gives +0
 *   the rank's partial sum            s, rounded once, to nearest even, to the partial type
 *   the token's parts                 the partial sums of the ranks of its own domain. For each
 *                                     other domain one part: its ranks' partial sums added in FP32
 *                                     in ascending rank order, beginning with the first, and
 *                                     rounded once to the partial type
 *   the token                         its parts added in FP32 in ascending order of their ranks (a
 *                                     domain stands where its ranks would), beginning with the
 *                                     first, and rounded once to the type of `out`. Sums past the
 *                                     largest number become infinite
 *   a token without a selection       +0
 *   a NaN in the result               the type's canonical NaN (0x7fff in BF16 and FP16,
 *                                     0x7fffffff in FP32)
 *
 * Returns hepErrorInvalidUsage as `hepDispatch`, and for hepWeightsDispatched if no dispatch with
 * weights followed the routing's latest update (on a rank without tokens: no dispatch at all).
 * Ranks that were refused and ranks that were not must agree anew.
 */
HEP_API hepResult_t hepCombine(hepRouting_t routing, const hepCombineArgs_t* args,
                               hepStream_t stream);

/**
 * The first half of a combine on a low-latency routing: sums this rank's contributions, and sends
 * them to the tokens' ranks, wherever y lies. `hepCombineReceive` completes it. The rules of
 * `hepDispatchSend` for halves hold. Returns hepErrorUnsupported for a routing of
 * hepModeThroughput, otherwise as `hepCombine`.
 */
HEP_API hepResult_t hepCombineSend(hepRouting_t routing, const hepCombineArgs_t* args,
                                   hepStream_t stream);

/**
 * The second half of a combine: adds up what the ranks have sent. Returns hepErrorInvalidUsage
 * unless `hepCombineSend` was the routing's latest operation.
 */
HEP_API hepResult_t hepCombineReceive(hepRouting_t routing, hepStream_t stream);

#ifdef __cplusplus
}
#endif

#endif /* HYBRIDEP_H */
