#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""HybridEPBuffer on GPUs: what cannot be shown without one, and times. No test of the build: it
needs a PyTorch with CUDA, and says so where there is none.

usage: HYBRIDEP_LIBRARY=PATH deepep_gpu.py [--quick] [--device cpu] [SECTION...]

On one GPU several ranks are threads of this process, each with a stream of its own. Where there are
more GPUs, the modes and the times run on processes over NCCL, too. Results go to deepep_gpu.json in
the folder that OUT names. --device cpu tries the script itself on the host backend.
"""

import argparse
import concurrent.futures
import gc
import json
import os
import pathlib
import random
import statistics
import sys
import threading
import time
import traceback

# Kernels that are loaded when they are first used would wait for kernels of other ranks that run.
os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
os.environ.setdefault("HEP_TIMEOUT_MS", "10000")
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src/bindings/python")]

try:
    import torch
except ImportError:
    sys.exit(f"deepep_gpu: {sys.executable} has no PyTorch")

import hybridep
import hybridep.deepep as deep_ep
from hybridep import _bootstrap
from hybridep.deepep import _meeting

import deepep_growth_test as growth
import deepep_modes_test as modes
from gang import Gang

NO_MORE_SELECTIONS = 8
device = torch.device("cuda")
quick = False
report = {}


# ------------------------------------------------------------------------------- ranks as threads


class Threads:
    """A group whose ranks are threads of this process, in place of one of torch.distributed."""

    def __init__(self, num_ranks):
        self.num_ranks = num_ranks
        self.barrier = threading.Barrier(num_ranks, timeout=60)
        self.store = torch.distributed.HashStore()
        self._parts = [None] * num_ranks
        self._place = threading.local()
        self._pool = concurrent.futures.ThreadPoolExecutor(num_ranks)
        self._starts = threading.Barrier(num_ranks)

    def rank(self):
        return self._place.rank

    def size(self):
        return self.num_ranks

    def all_gather(self, mine):
        self._parts[self.rank()] = mine
        self.barrier.wait()
        parts = list(self._parts)
        self.barrier.wait()
        return parts

    def run(self, body, *arguments):
        """Runs body(rank, num_ranks, *arguments) on every rank. Raises what any of them raised."""
        tasks = [
            self._pool.submit(self._run, rank, body, arguments) for rank in range(self.num_ranks)
        ]
        concurrent.futures.wait(tasks)
        errors = [task.exception() for task in tasks if task.exception() is not None]
        if errors:
            self.barrier.reset()
            broken = threading.BrokenBarrierError
            raise next((e for e in errors if not isinstance(e, broken)), errors[0])
        return [task.result() for task in tasks]

    def _run(self, rank, body, arguments):
        self._place.rank = rank
        self._starts.wait()  # no thread takes two ranks
        try:
            if device.type == "cpu":
                return body(rank, self.num_ranks, *arguments)
            with torch.cuda.stream(self._stream()):
                result = body(rank, self.num_ranks, *arguments)
                torch.cuda.current_stream().synchronize()
                return result
        except BaseException:
            self.barrier.abort()
            raise

    def _stream(self):
        if not hasattr(self._place, "stream"):
            self._place.stream = torch.cuda.Stream()
            with torch.cuda.stream(self._place.stream):
                fill_allocators()
        return self._place.stream


def fill_allocators():
    """Leaves free memory with PyTorch's allocators. To ask CUDA for it later may wait for a kernel
    of another rank, which waits for this rank.
    """
    sizes = [1 << 19] * 64 + [1 << 24] * 8
    kept = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
    kept += [torch.empty(64, pin_memory=True) for _ in range(64)]
    torch.cuda.synchronize()


_threads = threading.local()  # .group of a thread that is a rank
_torch_group = _bootstrap.torch_group


def group_of(group):
    """In place of the package's own: knows groups of threads, too."""
    if isinstance(group, Threads):
        _threads.group = group
        return group.size(), group.rank(), group.all_gather
    return _torch_group(group)


def store():
    group = getattr(_threads, "group", None)
    return torch.distributed.distributed_c10d._get_default_store() if group is None else group.store


_bootstrap.torch_group = group_of
_meeting._default_store = store


# ------------------------------------------------------------------- tests of the CPU on a device


class OnDevice:
    """A buffer that is given tensors of the CPU, and returns such, but works on the device. Ranks
    that are threads wait for each other after each call: kernels that wait for each other on one
    GPU must all be enqueued before the next ones.
    """

    def __init__(self, buffer):
        self._buffer = buffer

    def __getattr__(self, name):
        found = getattr(self._buffer, name)
        return self._call(found) if callable(found) else found

    def _call(self, method):
        def call(*arguments, **options):
            arguments = [there(value) for value in arguments]
            options = {name: there(value) for name, value in options.items()}
            result = method(*arguments, **options)
            if isinstance(self._buffer.group, Threads):
                self._buffer.group.barrier.wait()
            return tuple(map(back, result)) if isinstance(result, tuple) else result

        return call


def there(value):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def back(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value


_shared = {}


def shared_buffer(group, **options):
    key = (id(group), group.rank(), *sorted(options.items()))
    if key not in _shared:
        made = deep_ep.HybridEPBuffer(group, modes.HIDDEN, 64, modes.NUM_LOCAL_EXPERTS, **options)
        _shared[key] = OnDevice(made)
    return _shared[key]


def use_group(find):
    """The cases of the tests take their buffers from the group that find() returns."""
    modes.buffer_of = lambda **options: shared_buffer(find(), **options)
    growth.new_buffer = lambda num_tokens=64, num_local_experts=6, **options: OnDevice(
        deep_ep.HybridEPBuffer(find(), growth.HIDDEN, num_tokens, num_local_experts, **options)
    )


GROWTH = [
    growth.tokens_of_one_rank,
    growth.tokens_of_all_ranks,
    growth.longer_rows,
    growth.more_experts,
    growth.more_selections,
    growth.selections_of_one_rank,
]


def mode_cases(num_ranks):
    pads = [16] if quick else [None, 16, 100]
    choices = [("map", False), ("map", True), ("ids", False), ("ids", True), ("both", True)]
    for pad in pads:
        yield f"permuted, pad {pad}", modes.permuted_modes, (pad, choices)
    yield "no tokens", modes.permuted_with_tokens, ([0, 9, 0, 5], {})
    yield "no rows", modes.permuted_with_tokens, (modes.UNEVEN, {"only": [1]})
    yield "flat", modes.flat_modes, (modes.UNEVEN, {})
    for case in (
        modes.cached_handles,
        modes.cached_flat,
        modes.shorter_rows,
        modes.ids_of_other_types,
        modes.fewer_experts,
        *([modes.rows_of_float8] if modes.FLOAT8 else []),
        *(GROWTH if num_ranks == 2 else []),
    ):
        yield case.__name__, case, ()


def run_modes(run, num_ranks, where):
    for name, case, arguments in mode_cases(num_ranks):
        step(f"{where}: {name}", lambda: run(case, *arguments))


def modes_on_threads():
    for num_ranks in (2, 4):
        threads = Threads(num_ranks)
        use_group(lambda: threads)
        run_modes(threads.run, num_ranks, f"{num_ranks} ranks on one device")


def modes_on_gpus():
    num_ranks = min(torch.cuda.device_count(), 4) // 2 * 2
    for backend in ("nccl", "gloo_on_gpus"):
        gang = Gang(num_ranks, "nccl" if backend == "nccl" else "gloo")
        use_group(lambda: torch.distributed.group.WORLD)
        try:
            gang.run(choose_gpu)
            run_modes(gang.run, num_ranks, f"{num_ranks} GPUs, {backend}")
            step(f"times of {num_ranks} GPUs, {backend}", lambda: keep_times(backend, gang))
        finally:
            gang.close()


def keep_times(backend, gang):
    report[f"times_over_{backend}"] = gang.run(times)[0]


def choose_gpu(rank, num_ranks):
    torch.cuda.set_device(rank)


# ----------------------------------------------------------------------------------------- graphs


class Batch:
    """Tensors of a rank that keep their places and get new contents."""

    def __init__(self, rank, num_ranks, num_tokens=64, hidden=256, num_local_experts=4, top_k=4):
        self.num_experts = num_local_experts * num_ranks
        self.top_k = min(top_k, self.num_experts)
        self.rank = rank
        self.x = torch.zeros(num_tokens, hidden, dtype=torch.bfloat16, device=device)
        self.map = torch.zeros(num_tokens, self.num_experts, dtype=torch.bool, device=device)
        self.probs = torch.zeros(num_tokens, self.num_experts, device=device)
        self.capacity = num_tokens * num_ranks * self.top_k
        self.fill(0)

    def fill(self, seed):
        made = torch.Generator().manual_seed(1000 * seed + self.rank)
        self.x.copy_(torch.randn(self.x.shape, generator=made))
        scores = torch.rand(self.map.shape, generator=made)
        self.map.copy_(scores >= scores.topk(self.top_k, dim=1).values[:, -1:])
        self.probs.copy_(scores)

    def layer(self, buffer):
        """Dispatch without waiting, and the combine of the rows."""
        rows, probs, _, sizes, handle = buffer.dispatch_with_permute(
            hidden=self.x,
            routing_map=self.map,
            probs=self.probs,
            num_permuted_tokens=self.capacity,
            non_blocking=True,
        )
        out, gradients = buffer.combine_with_unpermute(hidden=rows, probs=probs, handle=handle)
        return out, gradients, sizes, handle[-1], handle

    def expected(self):
        """What the combine returns: each row is its token, and each prob its own."""
        selections = self.map.sum(1, keepdim=True)
        return (self.x * selections).bfloat16(), self.probs * self.map


def check_layer(batch, out, gradients, sizes, overflow):
    """Rows are added up in FP32 on each rank, so that only a sum over ranks is rounded twice."""
    expected, dense = batch.expected()
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
    assert torch.equal(gradients, dense)
    assert int(sizes.sum()) > 0 and int(overflow) == 0


def new_graph_buffer(group, batch):
    return deep_ep.HybridEPBuffer(
        group,
        batch.x.shape[1],
        batch.x.shape[0],
        batch.num_experts // group.size(),
        max_top_k=NO_MORE_SELECTIONS,
    )


ONE_CAPTURE = threading.Lock()


def capture(body):
    """One thread at a time: a capture begins by synchronising the device, which is forbidden while
    another thread captures on it. No capture waits for a peer.
    """
    graph = torch.cuda.CUDAGraph()
    with ONE_CAPTURE, torch.cuda.graph(
        graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
    ):
        results = body()
    return graph, results


def graphs(rank, num_ranks, group, meet):
    """meet(): all ranks have come here, and their streams are done."""
    batch = Batch(rank, num_ranks)
    buffer = new_graph_buffer(group, batch)
    _, _, sizes, _, handle = batch.layer(buffer)
    num_rows = int(sizes.sum())

    def by_handle():
        return buffer.dispatch_with_permute(
            hidden=batch.x, handle=handle, num_permuted_tokens=batch.capacity
        )[0]

    batch.fill(7)
    expected = by_handle()[:num_rows].clone()
    meet()
    graph, (out, gradients, sizes, overflow, made) = capture(lambda: batch.layer(buffer))
    cached_graph, rows = capture(by_handle)
    del made, handle
    gc.collect()
    meet()
    for seed in range(1, 6):
        batch.fill(seed)
        graph.replay()
        meet()
        check_layer(batch, out, gradients, sizes, overflow)
        batch.fill(seed + 100)
        check_layer(batch, *batch.layer(buffer)[:-1])  # an eager call between replays
        meet()
    batch.fill(7)
    cached_graph.replay()
    meet()
    assert torch.equal(rows[:num_rows], expected)
    del buffer, by_handle
    gc.collect()
    for seed in (8, 9):
        batch.fill(seed)
        graph.replay()
        meet()
        check_layer(batch, out, gradients, sizes, overflow)


def run_graphs():
    step("graphs, one rank", lambda: graphs(0, 1, world(), torch.cuda.synchronize))
    threads = Threads(2)

    def meet():
        threads.barrier.wait()
        torch.cuda.current_stream().synchronize()
        threads.barrier.wait()

    step("graphs, two ranks on one GPU", lambda: threads.run(graphs, threads, meet))


# ---------------------------------------------------------------------------------------- one rank


def world():
    """A group of this process alone."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        backend = "gloo" if device.type == "cpu" else "nccl"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    return distributed.group.WORLD


def no_call_waits():
    """Calls return while a long kernel keeps the stream busy."""
    batch = Batch(0, 1)
    buffer = new_graph_buffer(world(), batch)
    handle = batch.layer(buffer)[-1]

    def calls():
        rows, _, _, _, _ = buffer.dispatch_with_permute(
            hidden=batch.x, probs=batch.probs, handle=handle, num_permuted_tokens=batch.capacity
        )
        buffer.combine_with_unpermute(hidden=rows, handle=handle)
        flat = buffer.dispatch(batch.x, routing_map=batch.map, num_dispatched_tokens=len(batch.x))
        buffer.dispatch(batch.x, handle=flat[-1])
        buffer.combine(flat[0], None, flat[-1])
        return batch.layer(buffer)

    for _ in range(2):
        calls()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    begin = time.perf_counter()
    results = calls()
    host_ms = 1000 * (time.perf_counter() - begin)
    assert not torch.cuda.current_stream().query(), "the stream is done: a call has waited for it"
    torch.cuda.synchronize()
    check_layer(batch, *results[:-1])
    report["host_ms_behind_a_long_kernel"] = host_ms


def places():
    """Where results lie."""
    batch = Batch(0, 1)
    buffer = new_graph_buffer(world(), batch)
    result = buffer.dispatch_with_permute(hidden=batch.x, routing_map=batch.map)
    sizes, handle = result[3], result[4]
    assert sizes.device.type == "cpu" and sizes.is_pinned()
    assert handle[3].device.type == "cpu" and handle[3].is_pinned()
    assert handle[7].is_cuda and handle[10].is_cuda
    assert batch.layer(buffer)[2].is_cuda
    handle = batch.layer(buffer)[-1]
    assert handle[3].is_cuda and int(handle[3]) == len(batch.x)


def other_streams():
    """A handle is made on a stream, and used and dropped on another. A third takes free memory."""
    batch = Batch(0, 1)
    buffer = new_graph_buffer(world(), batch)
    streams = [torch.cuda.Stream() for _ in range(3)]
    chain = torch.cuda.Event()
    chain.record()
    for seed in range(30):
        with torch.cuda.stream(streams[seed % 3]):
            chain.wait()
            batch.fill(seed)
            _, _, sizes, overflow, handle = batch.layer(buffer)
            chain.record()
        with torch.cuda.stream(streams[(seed + 1) % 3]):
            chain.wait()
            rows, probs, _, _, _ = buffer.dispatch_with_permute(
                hidden=batch.x,
                probs=batch.probs,
                handle=handle,
                num_permuted_tokens=batch.capacity,
            )
            out, gradients = buffer.combine_with_unpermute(hidden=rows, probs=probs, handle=handle)
            chain.record()
        del handle
        with torch.cuda.stream(streams[(seed + 2) % 3]):
            torch.full((1 << 22,), 255, dtype=torch.uint8, device=device)
        torch.cuda.synchronize()
        check_layer(batch, out, gradients, sizes, overflow)


def compiled():
    """A layer in custom operators, compiled whole, with a fixed capacity."""
    batch = Batch(0, 1)
    buffer = new_graph_buffer(world(), batch)
    handles = {}

    @torch.library.custom_op("deepep_gpu::dispatch", mutates_args=())
    def dispatch(x: torch.Tensor, routing_map: torch.Tensor, capacity: int) -> torch.Tensor:
        rows, _, _, _, handles["latest"] = buffer.dispatch_with_permute(
            hidden=x, routing_map=routing_map, num_permuted_tokens=capacity, non_blocking=True
        )
        return rows

    @dispatch.register_fake
    def _(x, routing_map, capacity):
        return x.new_empty(capacity, x.shape[1])

    @torch.library.custom_op("deepep_gpu::combine", mutates_args=())
    def combine(rows: torch.Tensor, num_tokens: int) -> torch.Tensor:
        return buffer.combine_with_unpermute(hidden=rows, handle=handles["latest"])[0]

    @combine.register_fake
    def _(rows, num_tokens):
        return rows.new_empty(num_tokens, rows.shape[1])

    def layer(x, routing_map):
        return combine(dispatch(x * 2, routing_map, batch.capacity) + 1, x.shape[0])

    expected = layer(batch.x, batch.map)
    assert torch.equal(torch.compile(layer, fullgraph=True)(batch.x, batch.map), expected)


def memory_is_flat():
    """Handles are dropped in random order."""
    batch = Batch(0, 1)
    buffer = new_graph_buffer(world(), batch)
    handles, used, number = [], [], 1000 if quick else 10_000
    shuffled = random.Random(1)
    for index in range(number):
        handles.append(batch.layer(buffer)[-1])
        if len(handles) > 16:
            handles.pop(shuffled.randrange(len(handles)))
        if index in (number // 5, number - 1):
            torch.cuda.synchronize()
            used.append(torch.cuda.mem_get_info()[0])
    report["free_bytes_at_a_fifth_and_the_end"] = used
    assert used[0] - used[1] <= 8 << 20, used


# ------------------------------------------------------------------------------------------- times


class Stopwatch:
    """Time that passes inside of functions of the library."""

    def __init__(self, library, *names):
        self.seconds = 0.0
        self._library = library
        self._originals = {name: getattr(library, name) for name in names}

    def __enter__(self):
        for name, original in self._originals.items():
            setattr(self._library, name, self._timed(original))
        return self

    def __exit__(self, *_):
        for name, original in self._originals.items():
            setattr(self._library, name, original)

    def _timed(self, original):
        def call(*arguments):
            begin = time.perf_counter()
            result = original(*arguments)
            self.seconds += time.perf_counter() - begin
            return result

        return call


def device_us(call, number=20):
    """Median time of a call on the device."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]
    for _ in range(3):
        call()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(
        1000 * first.elapsed_time(second) for first, second in zip(events, events[1:])
    )


def host_us(call, library, number=50):
    """Time of a call on the host, and how much of it passes outside of the library."""
    call()
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    with Stopwatch(library, "hepDispatch", "hepCombine", "hepRoutingUpdate") as inside:
        begin = time.perf_counter()
        for _ in range(number):
            call()
        whole = time.perf_counter() - begin
    torch.cuda.synchronize()
    return 1e6 * whole / number, 1e6 * (whole - inside.seconds) / number


def whole_us(call, number=20):
    """Median time of a call that waits."""
    seconds = []
    for _ in range(number):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(seconds)


def times(rank, num_ranks):
    """Rows of a table: 4096 tokens, hidden 7168, top-8, 8 experts a rank."""
    num_tokens, hidden, top_k, local = (512, 1024, 8, 8) if quick else (4096, 7168, 8, 8)
    batch = Batch(rank, num_ranks, num_tokens, hidden, local, top_k)
    ids = batch.probs.topk(top_k, dim=1).indices
    weights = batch.probs.gather(1, ids)
    quantized = torch.randint(0, 255, batch.x.shape, dtype=torch.uint8, device=device)
    scales = torch.rand(num_tokens, hidden // 128, device=device)
    rows_of_table = []
    for sms in (8, 16, 24):
        buffer = deep_ep.HybridEPBuffer(
            world() if num_ranks == 1 else torch.distributed.group.WORLD,
            hidden,
            num_tokens,
            local,
            num_sms_dispatch_api=sms,
            num_sms_combine_api=sms,
            max_top_k=top_k,
        )
        library = buffer._room.communicator._library
        by_map = {"hidden": batch.x, "routing_map": batch.map, "probs": batch.probs}
        by_ids = {
            "hidden": batch.x,
            "topk_idx": ids,
            "topk_weights": weights,
            "num_of_experts": batch.num_experts,
        }
        rows, row_probs, _, _, handle = buffer.dispatch_with_permute(**by_map)
        cached = {"probs": batch.probs, "handle": handle, "num_permuted_tokens": len(rows)}
        calls = {
            "dispatch, cached, BF16": lambda: buffer.dispatch_with_permute(
                hidden=batch.x, **cached
            ),
            "dispatch, cached, FP8": lambda: buffer.dispatch_with_permute(
                hidden=quantized, scaling_factor=scales, **cached
            ),
            "combine": lambda: buffer.combine_with_unpermute(hidden=rows, handle=handle),
            "combine with probs": lambda: buffer.combine_with_unpermute(
                hidden=rows, probs=row_probs, handle=handle
            ),
        }
        for name, call in calls.items():
            on_host, outside = host_us(call, library)
            rows_of_table.append(
                {
                    "call": name,
                    "ranks": num_ranks,
                    "sms": sms,
                    "device_us": round(device_us(call), 1),
                    "host_us": round(on_host, 1),
                    "python_us": round(outside, 1),
                }
            )
        for name, options in (("map", by_map), ("ids", by_ids)):
            rows_of_table.append(
                {
                    "call": f"new routing by {name}, blocking, BF16",
                    "ranks": num_ranks,
                    "sms": sms,
                    "whole_us": round(whole_us(lambda: buffer.dispatch_with_permute(**options)), 1),
                }
            )
    if rank == 0:
        for row in rows_of_table:
            print("  " + "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return rows_of_table


def times_of_one_rank():
    report["times_of_one_rank"] = times(0, 1)


# -------------------------------------------------------------------------------------------- main


def step(name, body):
    """Runs a step, prints a line, and goes on whatever happens."""
    begin = time.perf_counter()
    try:
        body()
        outcome = "ok"
    except BaseException:
        outcome = "FAILED"
        traceback.print_exc()
        _shared.clear()  # a communicator that has failed stays so
    seconds = round(time.perf_counter() - begin, 2)
    report.setdefault("steps", {})[name] = outcome
    print(f"{outcome:6} {seconds:7.2f} s  {name}", flush=True)


SECTIONS = {
    "gpus": modes_on_gpus,  # first: processes are forked, which CUDA does not survive
    "modes": modes_on_threads,
    "graphs": run_graphs,
    "places": lambda: step("places of results", places),
    "waits": lambda: step("no call waits", no_call_waits),
    "streams": lambda: step("handles on several streams", other_streams),
    "compile": lambda: step("torch.compile", compiled),
    "memory": lambda: step("memory is flat", memory_is_flat),
    "times": lambda: step("times", times_of_one_rank),
}
ON_CPU = ("modes", "compile")


def what_is_here():
    facts = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "library": hybridep.get_library(),
        "gpus": torch.cuda.device_count(),
    }
    report.update(facts)
    print(" ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    return facts


def main():
    global device, quick
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer modes and smaller sizes")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; none: all")
    arguments = parser.parse_args()
    device, quick = torch.device(arguments.device), arguments.quick
    facts = what_is_here()
    if device.type == "cuda" and facts["gpus"] == 0:
        sys.exit("deepep_gpu: PyTorch finds no GPU")
    chosen = arguments.sections or list(SECTIONS)
    for name in chosen:
        skipped = (device.type == "cpu" and name not in ON_CPU) or (
            name == "gpus" and facts["gpus"] < 2
        )
        if skipped:
            print(f"       not run here: {name}", flush=True)
        else:
            SECTIONS[name]()
    out = pathlib.Path(os.environ.get("OUT", "."))
    (out / "deepep_gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    failed = [name for name, outcome in report.get("steps", {}).items() if outcome != "ok"]
    print(f"{len(report.get('steps', {})) - len(failed)} passed, {len(failed)} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
