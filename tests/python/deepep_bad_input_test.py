# SPDX-License-Identifier: Apache-2.0
"""What a HybridEPBuffer refuses: by a sentence that names the argument, before anything is sent."""

import os
import unittest
import warnings

try:
    import torch
except ImportError:
    raise unittest.SkipTest("PyTorch is not installed") from None

import hybridep
import hybridep.deepep as deep_ep
from gang import Gang

HIDDEN = 256
NUM_TOKENS = 10
NUM_EXPERTS = 4

gang = None


def setUpModule():
    global gang
    gang = Gang(2)


def tearDownModule():
    gang.close()


def new_buffer(**options):
    options = {"hidden_dim": HIDDEN, "num_local_experts": NUM_EXPERTS // 2, **options}
    group = torch.distributed.group.WORLD
    return deep_ep.HybridEPBuffer(group, max_num_of_tokens_per_rank=64, **options)


X = torch.ones(NUM_TOKENS, HIDDEN, dtype=torch.bfloat16)
MAP = torch.eye(NUM_EXPERTS).repeat(3, 1)[:NUM_TOKENS].bool()
IDS = torch.arange(NUM_TOKENS).remainder(NUM_EXPERTS).view(-1, 1)
PROBS = torch.ones(NUM_TOKENS, NUM_EXPERTS)
BYTES = torch.ones(NUM_TOKENS, HIDDEN, dtype=torch.uint8)
SCALES = torch.ones(NUM_TOKENS, HIDDEN // 128)

BY_MAP = {"hidden": X, "routing_map": MAP}
BY_IDS = {"hidden": X, "topk_idx": IDS, "num_of_experts": NUM_EXPERTS}
FP8 = {"hidden": BYTES, "routing_map": MAP, "use_fp8": True}
VALUE = hybridep.InvalidArgumentError

# What a dispatch with a new routing is given, and what it is refused with.
NEW_ROUTINGS = [
    ({"hidden": X[:7], "routing_map": MAP}, VALUE, r"routing_map has shape \[10, 4\].*\[7, 4\]"),
    ({"hidden": X, "routing_map": MAP.int()}, VALUE, "routing_map has elements of torch.int32"),
    (
        {"hidden": X, "routing_map": MAP[:, :3]},
        VALUE,
        r"routing_map has shape \[10, 3\].*\[10, 4\]",
    ),
    ({"hidden": X, "routing_map": MAP.t().contiguous()}, VALUE, "routing_map has shape"),
    ({"hidden": X, "routing_map": MAP.tolist()}, TypeError, "routing_map is .*must be a tensor"),
    ({"hidden": X, "routing_map": MAP.repeat(1, 2)[:, ::2]}, VALUE, "routing_map is strided"),
    ({**BY_MAP, "probs": PROBS.half()}, VALUE, "probs has elements of torch.float16"),
    ({**BY_MAP, "probs": PROBS[:, :2]}, VALUE, r"probs has shape \[10, 2\].*\[10, 4\]"),
    ({**BY_MAP, "probs": PROBS[:3]}, VALUE, r"probs has shape \[3, 4\].*\[10, 4\]"),
    ({"hidden": X, "topk_idx": IDS}, VALUE, "num_of_experts is None.*topk_idx"),
    ({**BY_IDS, "topk_idx": IDS.float()}, VALUE, "topk_idx has elements of torch.float32"),
    ({**BY_IDS, "topk_idx": IDS[:3]}, VALUE, r"topk_idx has shape \[3, 1\].*\[10, 1\]"),
    ({**BY_IDS, "topk_weights": PROBS}, VALUE, r"topk_weights has shape \[10, 4\].*\[10, 1\]"),
    ({**BY_IDS, "probs": PROBS.double()}, VALUE, "probs has elements of torch.float64"),
    ({**BY_IDS, "num_of_experts_per_rank": 1}, VALUE, "num_of_experts is 4, but 2 ranks of 1"),
    ({**BY_MAP, "num_of_experts_per_rank": 0}, VALUE, "num_of_experts_per_rank is 0"),
    ({"hidden": X}, VALUE, "routing_map, topk_idx and handle are None"),
    ({"hidden": X[0], "routing_map": MAP}, VALUE, r"hidden has shape \[256\]"),
    ({"hidden": X.float(), "routing_map": MAP}, VALUE, "hidden has elements of torch.float32"),
    ({"hidden": None, "routing_map": MAP}, TypeError, "hidden is None"),
    ({**BY_MAP, "hidden": X.t().contiguous().t()}, VALUE, "hidden is strided"),
    ({**BY_MAP, "use_fp8": True}, VALUE, "use_fp8 is True, but hidden .* torch.bfloat16"),
    ({**FP8, "use_fp8": False}, VALUE, "use_fp8 is False, but hidden .* torch.uint8"),
    ({**FP8}, VALUE, "scaling_factor is None"),
    ({**FP8, "scaling_factor": SCALES[:, :1]}, VALUE, r"scaling_factor has shape \[10, 1\]"),
    ({**FP8, "scaling_factor": SCALES.half()}, VALUE, "scaling_factor has elements"),
    (
        {**FP8, "hidden": BYTES[:, :100].contiguous()},
        VALUE,
        "hidden has 100 columns.*multiple of 128",
    ),
    ({**BY_MAP, "non_blocking": True}, VALUE, "num_permuted_tokens is None.*non_blocking"),
    (
        {**BY_MAP, "non_blocking": True, "num_permuted_tokens": 30, "pad_multiple": 16},
        VALUE,
        "num_permuted_tokens is 30.*multiple of pad_multiple, 16",
    ),
    (
        {**BY_MAP, "non_blocking": True, "num_permuted_tokens": -1},
        VALUE,
        "num_permuted_tokens is -1",
    ),
    ({**BY_MAP, "num_permuted_tokens": -1}, VALUE, "num_permuted_tokens is -1"),
    ({**BY_MAP, "num_permuted_tokens": 1.5}, TypeError, "float"),
    ({**BY_MAP, "pad_multiple": 5000}, VALUE, "alignment.*5000"),
    ({**BY_MAP, "num_of_tokens_per_rank": 9}, VALUE, "num_of_tokens_per_rank is 9.*10 tokens"),
]


def check_works(buffer):
    rows, _, _, sizes, handle = buffer.dispatch_with_permute(**BY_MAP)
    assert len(rows) == int(sizes.sum())
    out, _ = buffer.combine_with_unpermute(hidden=rows, handle=handle)
    assert torch.equal(out, X), out


def new_routings(rank, num_ranks):
    buffer, test = new_buffer(), unittest.TestCase()
    check_works(buffer)
    for options, kind, text in NEW_ROUTINGS:
        with test.subTest(text=text), test.assertRaisesRegex(kind, text):
            buffer.dispatch_with_permute(**options)
    check_works(buffer)


def handles(rank, num_ranks):
    buffer, other, test = new_buffer(), new_buffer(), unittest.TestCase()
    rows, _, _, _, handle = buffer.dispatch_with_permute(**BY_MAP)
    flat_rows, _, _, flat = buffer.dispatch(X, routing_map=MAP)
    cached = {"hidden": X, "handle": handle, "num_permuted_tokens": 8}
    dispatches = [
        ({"hidden": X, "handle": handle}, TypeError, "num_permuted_tokens is None.*handle"),
        ({**cached, "hidden": X[:3]}, VALUE, "hidden has 3 tokens, but handle is of 10"),
        (
            {**cached, "handle": flat},
            VALUE,
            "handle is of dispatch, but must be of .*_with_permute",
        ),
        ({**cached, "handle": handle[:9]}, TypeError, "handle is .*must be what a dispatch"),
        ({**cached, "handle": 5}, TypeError, "handle is 5"),
        ({**cached, "handle": (None,) * 11}, TypeError, "handle is .*None"),
        ({**cached, "topk_weights": PROBS[:, :2].contiguous()}, VALUE, "topk_weights has shape"),
        ({**cached, "num_of_tokens_per_rank": 9}, VALUE, "num_of_tokens_per_rank is 9"),
        ({**cached, "pad_multiple": 16}, VALUE, "pad_multiple is 16.*pad_multiple 1"),
        ({**cached, "num_permuted_tokens": -8}, VALUE, "num_permuted_tokens is -8"),
        ({**cached, "probs": PROBS[:, :2]}, VALUE, r"probs has shape \[10, 2\]"),
        ({**cached, "hidden": BYTES}, VALUE, "scaling_factor is None"),
        ({**cached, "hidden": torch.ones(10, 4 * HIDDEN).bfloat16()}, VALUE, "1024"),
    ]
    for options, kind, text in dispatches:
        with test.subTest(text=text), test.assertRaisesRegex(kind, text):
            buffer.dispatch_with_permute(**options)
    with test.assertRaisesRegex(VALUE, "handle is of another HybridEPBuffer"):
        other.dispatch_with_permute(**cached)
    combines = [
        ({"hidden": rows}, TypeError, "handle is None"),
        ({"hidden": rows, "handle": flat}, VALUE, "handle is of dispatch, but"),
        ({"hidden": rows.float(), "handle": handle}, VALUE, "hidden has elements of torch.float32"),
        ({"hidden": BYTES, "handle": handle}, VALUE, "hidden has elements of torch.uint8"),
        ({"hidden": rows[0], "handle": handle}, VALUE, "hidden has .*shape"),
        ({"hidden": None, "handle": handle}, TypeError, "hidden is None"),
        (
            {"hidden": rows, "handle": handle, "probs": torch.ones(len(rows), 1)},
            VALUE,
            "probs has .*shape",
        ),
        (
            {"hidden": rows, "handle": handle, "probs": torch.ones(len(rows)).double()},
            VALUE,
            "probs has elements of torch.float64",
        ),
    ]
    for options, kind, text in combines:
        with test.subTest(text=text), test.assertRaisesRegex(kind, text):
            buffer.combine_with_unpermute(**options)
    with test.assertRaisesRegex(VALUE, "handle is of another HybridEPBuffer"):
        other.combine_with_unpermute(hidden=rows, handle=handle)
    with test.assertRaisesRegex(
        VALUE, "handle is of dispatch_with_permute, but must be of dispatch"
    ):
        buffer.combine(flat_rows, None, handle)
    with test.assertRaisesRegex(VALUE, r"probs has shape \[\d+, 2\]"):
        buffer.combine(flat_rows, torch.ones(len(flat_rows), 2), flat)
    with test.assertRaisesRegex(VALUE, "hidden has 1 rows, but with probs must have"):
        buffer.combine(flat_rows[:1], torch.ones(1, NUM_EXPERTS), flat)
    with test.assertRaisesRegex(VALUE, "num_dispatched_tokens is -2"):
        buffer.dispatch(X, routing_map=MAP, num_dispatched_tokens=-2)
    with test.assertRaisesRegex(VALUE, "num_of_tokens_per_rank is 9"):
        buffer.dispatch(X, handle=flat, num_of_tokens_per_rank=9)
    check_works(buffer)
    check_works(other)


def constructors(rank, num_ranks):
    test = unittest.TestCase()
    cases = [
        ({"hidden_dim": 12}, "16 bytes"),
        ({"hidden_dim": 0}, "hidden"),
        ({"num_local_experts": 0}, "num_experts"),
        ({"max_top_k": 33}, "max_top_k is 33"),
        ({"num_sms_dispatch_api": 1, "num_sms_combine_api": 1}, "sm_budget"),
    ]
    for options, text in cases:
        with test.subTest(text=text), test.assertRaisesRegex(VALUE, text):
            new_buffer(**options)
    with test.assertRaisesRegex(TypeError, "hidden_dim is 1.5, but must be an integer"):
        new_buffer(hidden_dim=1.5)


def different_constructors(rank, num_ranks):
    with unittest.TestCase().assertRaisesRegex(
        hybridep.MismatchError, "rank . and rank . differ in hidden"
    ):
        new_buffer(hidden_dim=HIDDEN * (1 + rank))


def domains(rank, num_ranks):
    """A domain that is not the whole group is served if the library serves it."""
    name, test = "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", unittest.TestCase()
    for told in ("3", "16"):
        os.environ[name] = told
        with test.assertRaisesRegex(VALUE, f"{name} is {told}, but must divide the 2 ranks"):
            new_buffer()
    os.environ[name] = "1"
    config = hybridep.Config(max_tokens=512, hidden=HIDDEN, num_experts=4, domain_size=1)
    try:
        config.check(num_ranks)
    except hybridep.UnsupportedError:
        with test.assertRaisesRegex(hybridep.UnsupportedError, f"{name} is 1: .*only one domain"):
            new_buffer()
    else:
        assert new_buffer().num_of_nodes == 2
    os.environ[name] = "2"
    assert new_buffer().num_of_nodes == 1
    del os.environ[name]


def ids_out_of_range(rank, num_ranks):
    """One warning. The tokens go on without them."""
    buffer, ids = new_buffer(), IDS.clone()
    ids[2], ids[3] = NUM_EXPERTS, -7
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            rows, _, _, _, handle = buffer.dispatch_with_permute(**{**BY_IDS, "topk_idx": ids})
            out, _ = buffer.combine_with_unpermute(hidden=rows, handle=handle)
            expected = X.clone()
            expected[2:4] = 0
            assert torch.equal(out, expected)
    assert len(seen) == 1 and "token 2" in str(seen[0].message), [str(w.message) for w in seen]
    assert issubclass(seen[0].category, RuntimeWarning)


def missing_rank(rank, num_ranks):
    """A rank that does not come is named, and the first error comes again in every call."""
    os.environ["HEP_TIMEOUT_MS"] = "1000"
    buffer, test = new_buffer(), unittest.TestCase()
    del os.environ["HEP_TIMEOUT_MS"]
    rows, _, _, _, handle = buffer.dispatch_with_permute(**BY_MAP)
    torch.distributed.barrier()
    if rank == 0:
        with test.assertRaisesRegex(hybridep.PeerTimeoutError, "rank 1"):
            buffer.combine_with_unpermute(hidden=rows, handle=handle)
    torch.distributed.barrier()
    calls = [
        lambda: buffer.combine_with_unpermute(hidden=rows, handle=handle),
        lambda: buffer.dispatch_with_permute(**BY_MAP),
        lambda: buffer.dispatch(X, routing_map=MAP),
        lambda: buffer.dispatch_with_permute(hidden=X, handle=handle, num_permuted_tokens=8),
    ]
    for call in calls:
        with test.assertRaisesRegex(hybridep.PeerTimeoutError, "rank 1"):
            call()
    check_works(new_buffer())


def different_methods(rank, num_ranks):
    """A rank calls another method."""
    buffer, test = new_buffer(), unittest.TestCase()
    with test.assertRaisesRegex(hybridep.MismatchError, "rank . .*rank ."):
        if rank == 0:
            buffer.dispatch_with_permute(**BY_MAP)
        else:
            buffer.dispatch(X, routing_map=MAP)


def different_types(rank, num_ranks):
    buffer, test = new_buffer(), unittest.TestCase()
    with test.assertRaisesRegex(hybridep.MismatchError, "rank . .*rank ."):
        if rank == 0:
            buffer.dispatch_with_permute(**BY_MAP)
        else:
            buffer.dispatch_with_permute(hidden=X.half(), routing_map=MAP)


def different_probs(rank, num_ranks):
    buffer, test = new_buffer(), unittest.TestCase()
    with test.assertRaisesRegex(hybridep.MismatchError, "rank . .*weights"):
        buffer.dispatch_with_permute(**BY_MAP, probs=PROBS if rank == 0 else None)


class Arguments(unittest.TestCase):
    def test_of_a_new_routing(self):
        gang.run(new_routings)

    def test_with_a_handle(self):
        gang.run(handles)

    def test_of_the_constructor(self):
        gang.run(constructors)

    def test_domains(self):
        gang.run(domains)

    def test_ids_out_of_range(self):
        gang.run(ids_out_of_range)


class Ranks(unittest.TestCase):
    """Ranks that disagree."""

    def test_different_sizes(self):
        gang.run(different_constructors)

    def test_a_missing_rank(self):
        gang.run(missing_rank)

    def test_different_methods(self):
        gang.run(different_methods)

    def test_different_types(self):
        gang.run(different_types)

    def test_different_probs(self):
        gang.run(different_probs)
