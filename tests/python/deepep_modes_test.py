# SPDX-License-Identifier: Apache-2.0
"""HybridEPBuffer in every mode, on 2 and 4 processes, against plain torch."""

import itertools
import unittest

try:
    import torch
except ImportError:
    raise unittest.SkipTest("PyTorch is not installed") from None

import hybridep.deepep as deep_ep
from deepep_reference import Job, results_for
from gang import Gang

HIDDEN = 256
NUM_LOCAL_EXPERTS = 2
UNEVEN = [20, 13, 7, 16]
PADS = [None, 1, 16, 32, 100, 256]
PADS_OF_FOUR = [None, 100]
CAPACITIES = ["unknown", "exact", "larger", "smaller", "zero"]

FLOAT8 = getattr(torch, "float8_e4m3fn", None)

gangs = {}


def setUpModule():
    for num_ranks in (2, 4):
        gangs[num_ranks] = Gang(num_ranks)


def tearDownModule():
    for gang in gangs.values():
        gang.close()


def run_all(case, *arguments):
    for gang in gangs.values():
        gang.run(case, *arguments)


# --------------------------------------------------------------------------------- in the processes

_buffers = {}


def buffer_of(**options):
    """A buffer that the cases of this process share."""
    key = tuple(sorted(options.items()))
    if key not in _buffers:
        group = torch.distributed.group.WORLD
        _buffers[key] = deep_ep.HybridEPBuffer(group, HIDDEN, 64, NUM_LOCAL_EXPERTS, **options)
    return _buffers[key]


def job_of(num_ranks, seed=1, tokens=None, **options):
    tokens = (UNEVEN if tokens is None else tokens)[:num_ranks]
    return Job(seed, tokens, HIDDEN, NUM_LOCAL_EXPERTS, **options)


def choice_of(job, rank, by, with_probs):
    """Arguments of a dispatch, and the dense weights that must go with the rows."""
    ids = {"topk_idx": job.ids[rank], "num_of_experts": job.num_experts}
    if by == "map":
        probs = {"probs": job.probs[rank]} if with_probs else {}
        return {"routing_map": job.maps[rank], **probs}, job.probs
    if by == "ids":
        weights = {"topk_weights": job.weights[rank]} if with_probs else {}
        return {**ids, **weights}, job.dense_weights()
    return {**ids, "topk_weights": job.weights[rank], "probs": job.probs[rank]}, job.probs


def tokens_of(job, rank, kind):
    """Arguments of a dispatch, the rows' source, and that of their scales."""
    if kind == "fp8":
        options = {"hidden": job.bytes[rank], "scaling_factor": job.scales[rank], "use_fp8": True}
        return options, job.bytes, job.scales
    if kind == "fp16":
        tokens = [tokens.half() for tokens in job.tokens]
        return {"hidden": tokens[rank]}, tokens, None
    return {"hidden": job.tokens[rank], "scaling_factor": job.scales[rank]}, job.tokens, None


def same(seen, expected):
    """Bit for bit, and of the same shape and type."""
    assert seen.dtype == expected.dtype, (seen.dtype, expected.dtype)
    assert seen.shape == expected.shape, (seen.shape, expected.shape)
    if seen.is_floating_point():
        width = {2: torch.int16, 4: torch.int32}[seen.element_size()]
        seen, expected = seen.view(width), expected.view(width)
    assert torch.equal(seen, expected), (seen, expected)


def capacity_of(kind, num_needed, pad):
    return {
        "unknown": None,
        "exact": num_needed,
        "larger": num_needed + 2 * pad,
        "smaller": max(num_needed - pad, 0),
        "zero": 0,
    }[kind]


class Expected:
    """The rows by expert of all ranks for a job and padding."""

    def __init__(self, job, rank, pad):
        self.job = job
        self.rank = rank
        self.needed = [job.needed(source, pad) for source in range(job.num_ranks)]
        self.results = {
            dtype: [
                results_for(rows, HIDDEN, 7 + source, dtype)
                for source, rows in enumerate(self.needed)
            ]
            for dtype in (torch.bfloat16, torch.float16)
        }
        self._combined = {}

    def combined(self, dtype, lengths):
        """Sums and gradients if each rank has as many rows."""
        key = (dtype, tuple(lengths))
        if key not in self._combined:
            cut = [
                (rows[:length], probs[:length])
                for (rows, probs), length in zip(self.results[dtype], lengths)
            ]
            rows, probs = zip(*cut)
            self._combined[key] = (
                self.job.combined(self.rank, self.needed, rows),
                self.job.gradients(self.rank, self.needed, probs),
            )
        return self._combined[key]


def permuted_case(
    rank, num_ranks, expected, pad, by, with_probs, kind, capacity_kind, non_blocking
):
    """One dispatch by expert with its combine."""
    job, step = expected.job, pad or 1
    needed = expected.needed[rank]
    capacities = [capacity_of(capacity_kind, len(rows), step) for rows in expected.needed]
    lengths = [
        len(rows) if capacity is None else min(len(rows), capacity)
        for rows, capacity in zip(expected.needed, capacities)
    ]
    choice, dense = choice_of(job, rank, by, with_probs)
    tokens, source, scales = tokens_of(job, rank, kind)
    result = buffer_of().dispatch_with_permute(
        num_permuted_tokens=capacities[rank],
        pad_multiple=pad,
        non_blocking=non_blocking,
        **choice,
        **tokens,
    )
    rows, row_probs, row_scales, sizes, handle = result
    length = lengths[rank]
    assert len(rows) == (len(needed) if capacities[rank] is None else capacities[rank])
    same(rows[:length], job.gather(needed[:length], source))
    if with_probs:
        assert row_probs.shape == (len(rows),)
        same(row_probs[:length], job.gather_probs(needed[:length], dense))
    else:
        assert row_probs is None
    if scales is None:
        assert row_scales is None
    else:
        assert row_scales.shape == (len(rows), HIDDEN // 128)
        same(row_scales[:length], job.gather(needed[:length], scales))
    assert sizes.dtype == torch.int64 and sizes.tolist() == job.group_sizes(rank, step, len(rows))
    check_handle(job, rank, handle, overflow=length < len(needed))
    dtype = torch.float16 if kind == "fp16" else torch.bfloat16
    results, gradients = expected.results[dtype][rank]
    extra = len(rows) - length
    results = torch.nn.functional.pad(results[:length], (0, 0, 0, extra))
    gradients = torch.nn.functional.pad(gradients[:length], (0, extra)) if with_probs else None
    out, dense = buffer_of().combine_with_unpermute(
        hidden=results, probs=gradients, handle=handle, pad_multiple=pad
    )
    sums, dense_gradients = expected.combined(dtype, lengths)
    same(out, sums)
    if with_probs:
        same(dense, dense_gradients)
    else:
        assert dense is None


def check_handle(job, rank, handle, overflow):
    assert len(handle) == 11
    hash(handle)
    assert handle[3].dtype == torch.int32 and handle[3].tolist() == [len(job.flat(rank))]
    assert handle[7].dtype == torch.int32 and handle[7].tolist() == job.counts(rank)
    assert handle[8] == job.num_tokens[rank]
    assert isinstance(handle[9], deep_ep.HybridEpConfigInstance)
    assert handle[10].dtype == torch.int32 and handle[10].tolist() == [int(overflow)]


def permuted_modes(rank, num_ranks, pad, choices):
    expected = Expected(job_of(num_ranks), rank, pad or 1)
    for (by, with_probs), kind, capacity_kind, non_blocking in itertools.product(
        choices, ("bf16", "fp8", "fp16"), CAPACITIES, (False, True)
    ):
        if non_blocking and capacity_kind == "unknown":
            continue
        try:
            permuted_case(
                rank, num_ranks, expected, pad, by, with_probs, kind, capacity_kind, non_blocking
            )
        except Exception as error:
            where = (pad, by, with_probs, kind, capacity_kind, non_blocking)
            raise AssertionError(
                f"pad, choice, probs, type, capacity, non_blocking: {where}"
            ) from error


def permuted_with_tokens(rank, num_ranks, tokens, options):
    expected = Expected(job_of(num_ranks, 2, tokens, **options), rank, 16)
    for by, kind, non_blocking in itertools.product(("map", "ids"), ("bf16", "fp8"), (False, True)):
        capacity = "exact" if non_blocking else "unknown"
        permuted_case(rank, num_ranks, expected, 16, by, True, kind, capacity, non_blocking)


# ----------------------------------------------------------------------------------- rows by source


def flat_probs(job, rank, dense):
    """FP32 [n, E] of the rows by source: the weights of this rank's experts that are selected."""
    rows, mine = job.flat(rank), list(job.experts_of(rank))
    made = torch.zeros(len(rows), job.num_experts)
    for place, (source, token) in enumerate(rows):
        for expert in mine:
            if job.maps[source][token, expert]:
                made[place, expert] = dense[source][token, expert]
    return made


def flat_gradients(job, rank, probs_of):
    """FP32 [T, E] that come back of the rows' probs of all ranks."""
    made = torch.zeros(job.num_tokens[rank], job.num_experts)
    for owner, probs in enumerate(probs_of):
        for place, (source, token) in enumerate(job.flat(owner)[: len(probs)]):
            for expert in job.experts_of(owner):
                if source == rank and job.maps[source][token, expert]:
                    made[token, expert] = probs[place, expert]
    return made


def flat_case(rank, num_ranks, job, by, with_probs, kind, extra):
    """One dispatch by source with its combine. extra: rows told past those needed, or None."""
    buffer = buffer_of(use_fp8=kind == "fp8")
    flat = [job.flat(source) for source in range(num_ranks)]
    told = None if extra is None else max(len(flat[rank]) + extra, 0)
    lengths = [
        len(rows) if extra is None else max(min(len(rows), len(rows) + extra), 0) for rows in flat
    ]
    length = lengths[rank]
    choice, dense = choice_of(job, rank, by, with_probs)
    tokens, source, scales = tokens_of(job, rank, kind)
    tokens.pop("use_fp8", None)
    rows, probs, row_scales, handle = buffer.dispatch(
        num_dispatched_tokens=told, **tokens, **choice
    )
    assert len(rows) == (length if told is None else told)
    same(rows[:length], job.gather(flat[rank][:length], source))
    if with_probs:
        expected = torch.zeros(len(rows), job.num_experts)
        expected[:length] = flat_probs(job, rank, dense)[:length]
        same(probs, expected)
    else:
        assert probs is None
    if scales is None:
        assert row_scales is None
    else:
        same(row_scales[:length], job.gather(flat[rank][:length], scales))
    check_flat_handle(job, rank, handle, length)
    dtype = torch.float16 if kind == "fp16" else torch.bfloat16
    results = [results_for(rows, HIDDEN, 11 + owner, dtype)[0] for owner, rows in enumerate(flat)]
    gradients = [
        torch.rand(length, job.num_experts, generator=torch.Generator().manual_seed(owner))
        for owner, length in enumerate(lengths)
    ]
    pad = len(rows) - length
    out, back = buffer.combine(
        torch.nn.functional.pad(results[rank][:length], (0, 0, 0, pad)),
        torch.nn.functional.pad(gradients[rank], (0, 0, 0, pad)) if with_probs else None,
        handle,
    )
    cut = [result[:count] for result, count in zip(results, lengths)]
    same(out, job.combined(rank, flat, cut))
    if with_probs:
        same(back, flat_gradients(job, rank, gradients))
    else:
        assert back is None


def check_flat_handle(job, rank, handle, length):
    assert len(handle) == 7
    hash(handle)
    flat = job.flat(rank)
    assert handle[3].dtype == torch.int32 and handle[3].tolist() == [len(flat)]
    experts = list(job.experts_of(rank))
    for place, (source, token) in enumerate(flat[:length]):
        assert handle[4][place].tolist() == job.maps[source][token, experts].tolist()
    assert handle[5] == job.num_tokens[rank]
    assert isinstance(handle[6], deep_ep.HybridEpConfigInstance)


def flat_modes(rank, num_ranks, tokens, options):
    job = job_of(num_ranks, 3, tokens, **options)
    for (by, with_probs), kind, extra in itertools.product(
        (("map", False), ("map", True), ("ids", False), ("ids", True), ("both", True)),
        ("bf16", "fp8", "fp16"),
        (None, 0, 5, -3, -1000),
    ):
        try:
            flat_case(rank, num_ranks, job, by, with_probs, kind, extra)
        except Exception as error:
            raise AssertionError(
                f"choice, probs, type, extra: {(by, with_probs, kind, extra)}"
            ) from error


# ----------------------------------------------------------------------------------- cached handles


def cached_dispatch(rank, job, handle, pad, seed, kind, with_probs, extra):
    """A dispatch of other tokens by the routing of a handle."""
    other = Job(seed, job.num_tokens, HIDDEN, NUM_LOCAL_EXPERTS)
    needed = job.needed(rank, pad)
    tokens, source, scales = tokens_of(other, rank, kind)
    rows, probs, row_scales, sizes, same_handle = buffer_of().dispatch_with_permute(
        probs=other.probs[rank] if with_probs else None,
        handle=handle,
        num_permuted_tokens=torch.tensor(len(needed) + extra),
        pad_multiple=pad,
        **tokens,
    )
    assert sizes is None and len(rows) == len(needed) + extra
    length = min(len(needed), len(rows))
    same(rows[:length], job.gather(needed[:length], source))
    if with_probs:
        same(probs[:length], job.gather_probs(needed[:length], other.probs))
    else:
        assert probs is None
    if scales is None:
        assert row_scales is None
    else:
        same(row_scales[:length], job.gather(needed[:length], scales))
    assert all(a is b for a, b in zip(handle, same_handle))


def cached_handles(rank, num_ranks):
    """Six handles are alive, and are used out of order."""
    pads = [1, 16, 32, 100, 256, 16]
    jobs = [job_of(num_ranks, 20 + i, UNEVEN[i % 4 :] + UNEVEN[: i % 4]) for i in range(6)]
    handles = []
    for i, (job, pad) in enumerate(zip(jobs, pads)):
        choice, _ = choice_of(job, rank, ("map", "ids", "both")[i % 3], True)
        tokens, _, _ = tokens_of(job, rank, ("bf16", "fp8")[i % 2])
        result = buffer_of().dispatch_with_permute(pad_multiple=pad, **choice, **tokens)
        handles.append(result[-1])
    order = [4, 0, 5, 2, 2, 1, 3, 0, 5]
    for seed, i in enumerate(order):
        kind = ("bf16", "fp8", "fp16")[seed % 3]
        extra = (0, 3, -5)[seed % 3]
        cached_dispatch(rank, jobs[i], handles[i], pads[i], 50 + seed, kind, seed % 2 == 0, extra)
    for i in reversed(order):
        needed = [jobs[i].needed(owner, pads[i]) for owner in range(num_ranks)]
        results, gradients = zip(
            *(results_for(rows, HIDDEN, i + owner) for owner, rows in enumerate(needed))
        )
        out, dense = buffer_of().combine_with_unpermute(
            hidden=results[rank], probs=gradients[rank], handle=handles[i]
        )
        same(out, jobs[i].combined(rank, needed, results))
        same(dense, jobs[i].gradients(rank, needed, gradients))


def cached_flat(rank, num_ranks):
    job, buffer = job_of(num_ranks), buffer_of()
    first = buffer.dispatch(job.tokens[rank], routing_map=job.maps[rank])
    other = Job(9, job.num_tokens, HIDDEN, NUM_LOCAL_EXPERTS)
    rows, probs, _, handle = buffer.dispatch(
        other.tokens[rank], probs=other.probs[rank], handle=first[-1]
    )
    same(rows, job.gather(job.flat(rank), other.tokens))
    same(probs, flat_probs(job, rank, other.probs))
    assert handle[0] is first[-1][0]
    told = len(rows) - 1 if len(rows) > 0 else 0
    for options in (
        {"num_dispatched_tokens": torch.tensor(told)},
        {"num_dispatched_tokens_tensor": torch.tensor([told], dtype=torch.int32)},
    ):
        fewer = buffer.dispatch(other.tokens[rank], handle=first[-1], **options)[0]
        same(fewer, rows[:told])


def shorter_rows(rank, num_ranks):
    """A call with a smaller hidden size needs no other buffer, and no other handle."""
    job, buffer = job_of(num_ranks), buffer_of()
    handle = buffer.dispatch_with_permute(hidden=job.tokens[rank], routing_map=job.maps[rank])[-1]
    needed = job.needed(rank, 1)
    tokens = [rows[:, :128].contiguous() for rows in job.tokens]
    rows = buffer.dispatch_with_permute(
        hidden=tokens[rank], handle=handle, num_permuted_tokens=len(needed)
    )[0]
    same(rows, job.gather(needed, tokens))
    out, _ = buffer.combine_with_unpermute(hidden=rows, handle=handle)
    assert out.shape == (job.num_tokens[rank], 128)
    quantized = [rows[:, :128].contiguous() for rows in job.bytes]
    scales = [columns[:, :1].contiguous() for columns in job.scales]
    rows, _, row_scales, _, _ = buffer.dispatch_with_permute(
        hidden=quantized[rank],
        scaling_factor=scales[rank],
        use_fp8=True,
        routing_map=job.maps[rank],
    )
    same(rows, job.gather(needed, quantized))
    same(row_scales, job.gather(needed, scales))
    assert buffer.config.hidden_dim == HIDDEN


def rows_of_float8(rank, num_ranks):
    job = job_of(num_ranks)
    rows, _, scales, _, _ = buffer_of().dispatch_with_permute(
        hidden=job.bytes[rank].view(FLOAT8),
        scaling_factor=job.scales[rank],
        use_fp8=True,
        routing_map=job.maps[rank],
    )
    needed = job.needed(rank, 1)
    assert rows.dtype == FLOAT8
    assert torch.equal(rows.view(torch.uint8), job.gather(needed, job.bytes))
    same(scales, job.gather(needed, job.scales))


def ids_of_other_types(rank, num_ranks):
    job = job_of(num_ranks)
    for ids in (job.ids[rank].int(), job.ids[rank]):
        rows = buffer_of().dispatch_with_permute(
            hidden=job.tokens[rank], topk_idx=ids, num_of_experts=job.num_experts
        )[0]
        same(rows, job.gather(job.needed(rank, 1), job.tokens))


def a_map_decides(rank, num_ranks):
    """A map decides over ids, and neither fusing nor deprecated arguments change anything."""
    job, buffer = job_of(num_ranks), buffer_of()
    needed = job.needed(rank, 1)
    wrong = torch.zeros_like(job.ids[rank])
    with unittest.TestCase().assertWarns(DeprecationWarning):
        rows, _, _, sizes, handle = buffer.dispatch_with_permute(
            hidden=job.tokens[rank],
            routing_map=job.maps[rank],
            topk_idx=wrong,
            num_of_experts=job.num_experts,
            num_of_experts_per_rank=NUM_LOCAL_EXPERTS,
            num_of_tokens_per_rank=max(job.num_tokens),
            fuse_permute_dispatch=True,
            num_permuted_tokens=len(needed),
            use_host_meta=False,
        )
    same(rows, job.gather(needed, job.tokens))
    assert sizes.tolist() == job.counts(rank)
    out, _ = buffer.combine_with_unpermute(hidden=rows, handle=handle, fuse_unpermute_combine=True)
    assert out.shape == job.tokens[rank].shape


def fewer_experts(rank, num_ranks):
    """A call may have fewer experts than the buffer has room for."""
    buffer = buffer_of()
    job = Job(5, UNEVEN[:num_ranks], HIDDEN, num_local_experts=1, top_k=2)
    for by in ("map", "ids"):
        choice, dense = choice_of(job, rank, by, True)
        rows, probs, _, sizes, handle = buffer.dispatch_with_permute(
            hidden=job.tokens[rank], num_of_experts_per_rank=1, pad_multiple=16, **choice
        )
        needed = [job.needed(owner, 16) for owner in range(num_ranks)]
        same(rows, job.gather(needed[rank], job.tokens))
        same(probs, job.gather_probs(needed[rank], dense))
        assert sizes.tolist() == job.group_sizes(rank, 16, len(rows))
        assert handle[7].tolist() == job.counts(rank)
        gradients = [results_for(rows, HIDDEN, owner)[1] for owner, rows in enumerate(needed)]
        _, back = buffer.combine_with_unpermute(hidden=rows, probs=gradients[rank], handle=handle)
        same(back, job.gradients(rank, needed, gradients))


class Flat(unittest.TestCase):
    """Rows by source, and their combine."""

    def test_rows_by_map_and_ids(self):
        run_all(flat_modes, UNEVEN, {})

    def test_ranks_without_tokens_or_rows(self):
        run_all(flat_modes, [0, 9, 0, 5], {"only": [1]})

    def test_a_handle_is_used_again(self):
        run_all(cached_flat)


class Handles(unittest.TestCase):
    def test_six_are_used_out_of_order(self):
        run_all(cached_handles)

    def test_shorter_rows(self):
        run_all(shorter_rows)


class Choices(unittest.TestCase):
    @unittest.skipUnless(FLOAT8, "this PyTorch has no FP8 types")
    def test_rows_of_float8(self):
        run_all(rows_of_float8)

    def test_ids_of_32_and_64_bits(self):
        run_all(ids_of_other_types)

    def test_a_map_decides_over_ids(self):
        run_all(a_map_decides)

    def test_fewer_experts_than_there_is_room_for(self):
        run_all(fewer_experts)


class Permuted(unittest.TestCase):
    """Rows by expert, and their combine."""

    def run_pads(self, choices):
        for pad in PADS:
            gangs[2].run(permuted_modes, pad, choices)
        for pad in PADS_OF_FOUR:
            gangs[4].run(permuted_modes, pad, choices)

    def test_rows_by_map(self):
        self.run_pads([("map", False), ("map", True)])

    def test_rows_by_ids(self):
        self.run_pads([("ids", False), ("ids", True)])

    def test_rows_by_ids_with_dense_probs(self):
        self.run_pads([("both", True)])

    def test_ranks_without_tokens(self):
        run_all(permuted_with_tokens, [0, 9, 0, 5], {})
        run_all(permuted_with_tokens, [0, 0, 0, 0], {})

    def test_ranks_that_receive_nothing(self):
        run_all(permuted_with_tokens, UNEVEN, {"only": [0]})
        run_all(permuted_with_tokens, UNEVEN, {"only": [1, 3]})
