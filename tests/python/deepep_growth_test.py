# SPDX-License-Identifier: Apache-2.0
"""How a HybridEPBuffer gets room, when its host waits, and when its routings are free again."""

import gc
import os
import threading
import unittest
import unittest.mock
import weakref

try:
    import torch
except ImportError:
    raise unittest.SkipTest("PyTorch is not installed") from None

import hybridep
import hybridep.deepep as deep_ep
from gang import Gang

HIDDEN = 64

gang = None


def setUpModule():
    global gang
    gang = Gang(2)


def tearDownModule():
    gang.close()


def new_buffer(num_tokens=64, num_local_experts=6, **options):
    group = torch.distributed.group.WORLD
    return deep_ep.HybridEPBuffer(group, HIDDEN, num_tokens, num_local_experts, **options)


def map_of(num_tokens, num_experts, selections):
    """Token t selects the experts t, t + 1, ..."""
    selected = torch.zeros(num_tokens, num_experts, dtype=torch.bool)
    for token in range(num_tokens):
        for k in range(selections):
            selected[token, (token + k) % num_experts] = True
    return selected


def tokens_of(rank, num_tokens, hidden=HIDDEN):
    return (
        torch.arange(num_tokens * hidden).view(num_tokens, hidden).remainder(100).bfloat16() + rank
    )


def check_round_trip(buffer, rank, num_tokens, selections, hidden=HIDDEN, **options):
    """A dispatch by map, with its combine."""
    num_experts = options.pop("num_experts", buffer.config.num_of_experts_per_rank * 2)
    x = tokens_of(rank, num_tokens, hidden)
    result = buffer.dispatch_with_permute(
        hidden=x, routing_map=map_of(num_tokens, num_experts, selections), **options
    )
    check_combine(buffer, x, result, selections)
    return result


def check_combine(buffer, x, result, selections):
    """The sum of rows of ones is the number of a token's rows."""
    ones = torch.ones_like(result[0])
    out, _ = buffer.combine_with_unpermute(hidden=ones, handle=result[-1])
    assert torch.equal(out, torch.full_like(x, float(selections))), out


def sizes(buffer):
    config = buffer.configurer.buffer_config
    return config.hidden_dim, config.max_num_of_tokens_per_rank, config.num_of_experts_per_rank


# ------------------------------------------------------------------------------------------- growth


def constructor(rank, num_ranks):
    assert sizes(new_buffer(1)) == (HIDDEN, 512, 6)
    assert sizes(new_buffer(600 + 100 * rank)) == (HIDDEN, 704, 6)


def tokens_of_one_rank(rank, num_ranks):
    """num_of_tokens_per_rank tells the others. Older handles stay right."""
    buffer = new_buffer()
    old = check_round_trip(buffer, rank, 10, 2)
    check_round_trip(buffer, rank, 600 if rank == 0 else 3, 2, num_of_tokens_per_rank=600)
    assert sizes(buffer) == (HIDDEN, 640, 6)
    check_combine(buffer, tokens_of(rank, 10), old, 2)
    again = buffer.dispatch_with_permute(
        hidden=tokens_of(rank, 10), handle=old[-1], num_permuted_tokens=len(old[0])
    )
    assert torch.equal(again[0], old[0])
    check_round_trip(buffer, rank, 5, 2)


def tokens_of_all_ranks(rank, num_ranks):
    """Each rank has more than ever. The most counts."""
    buffer = new_buffer()
    check_round_trip(buffer, rank, 600 + 64 * rank, 2)
    assert sizes(buffer) == (HIDDEN, 704, 6)
    buffer.dispatch(tokens_of(rank, 800), routing_map=map_of(800, 12, 1))
    assert sizes(buffer) == (HIDDEN, 832, 6)


def longer_rows(rank, num_ranks):
    buffer = new_buffer()
    old = check_round_trip(buffer, rank, 10, 2)
    check_round_trip(buffer, rank, 10, 2, hidden=2 * HIDDEN)
    assert sizes(buffer) == (2 * HIDDEN, 512, 6)
    check_combine(buffer, tokens_of(rank, 10), old, 2)
    check_round_trip(buffer, rank, 10, 2)
    assert sizes(buffer) == (2 * HIDDEN, 512, 6)


def more_experts(rank, num_ranks):
    buffer = new_buffer(num_local_experts=2)
    check_round_trip(buffer, rank, 10, 2)
    check_round_trip(buffer, rank, 10, 5, num_experts=6, num_of_experts_per_rank=3)
    assert sizes(buffer) == (HIDDEN, 512, 3)
    ids = torch.arange(8).expand(10, 8).contiguous()
    buffer.dispatch_with_permute(hidden=tokens_of(rank, 10), topk_idx=ids, num_of_experts=8)
    assert sizes(buffer) == (HIDDEN, 512, 4)


def more_selections(rank, num_ranks):
    """More than 8, which a buffer has room for at first."""
    buffer = new_buffer()
    check_round_trip(buffer, rank, 10, 9)
    check_round_trip(buffer, rank, 10, 12)
    check_round_trip(buffer, rank, 10, 3)
    buffer = new_buffer()
    ids = torch.arange(12)[:10].expand(4, 10).contiguous()
    x = tokens_of(rank, 4)
    result = buffer.dispatch_with_permute(hidden=x, topk_idx=ids, num_of_experts=12)
    check_combine(buffer, x, result, 10)


def selections_of_one_rank(rank, num_ranks):
    """The map of one rank has more: both grow."""
    buffer = new_buffer()
    check_round_trip(buffer, rank, 10, 12 - 6 * rank)
    check_round_trip(buffer, rank, 10, 2)


def template(rank, num_ranks):
    buffer = new_buffer()
    config = buffer.update_template_config(
        hidden_dim=2 * HIDDEN, num_of_tokens_per_rank=1000, num_local_experts=7
    )
    assert config.max_num_of_tokens_per_rank == 1008
    assert sizes(buffer) == (2 * HIDDEN, 1024, 7)


def alone(rank, num_ranks):
    """The rank that grows alone is refused. The buffer is as it was."""
    buffer = new_buffer()
    if rank == 1:
        os.environ["HEP_INIT_TIMEOUT_MS"] = "1000"
        text = "rank 0 has not come within 1000 ms.*num_of_tokens_per_rank"
        with unittest.TestCase().assertRaisesRegex(hybridep.PeerTimeoutError, text):
            check_round_trip(buffer, rank, 600, 2)
        del os.environ["HEP_INIT_TIMEOUT_MS"]
        assert sizes(buffer) == (HIDDEN, 512, 6)
    torch.distributed.barrier()
    check_round_trip(buffer, rank, 10, 2)
    check_round_trip(buffer, rank, 600, 2)


def without_store(rank, num_ranks):
    """A version of PyTorch that does not show its store."""
    buffer = new_buffer()
    with unittest.mock.patch.object(deep_ep._meeting, "_default_store", lambda: None):
        with unittest.TestCase().assertRaisesRegex(hybridep.UnsupportedError, "has no store"):
            check_round_trip(buffer, rank, 600, 2)
    check_round_trip(buffer, rank, 10, 2)


class Growth(unittest.TestCase):
    def test_the_constructor_agrees_on_the_most_tokens(self):
        gang.run(constructor)

    def test_more_tokens_on_one_rank(self):
        gang.run(tokens_of_one_rank)

    def test_more_tokens_on_all_ranks(self):
        gang.run(tokens_of_all_ranks)

    def test_longer_rows(self):
        gang.run(longer_rows)

    def test_more_experts(self):
        gang.run(more_experts)

    def test_more_selections(self):
        gang.run(more_selections)

    def test_more_selections_on_one_rank(self):
        gang.run(selections_of_one_rank)

    def test_a_config_makes_room(self):
        gang.run(template)

    def test_without_a_store_there_is_no_growth(self):
        gang.run(without_store)

    def test_a_rank_alone_is_refused_in_time(self):
        gang.run(alone)


# -------------------------------------------------------------------------------------------- waits


class Waits:
    """Counts how often the host asks for counts, which is the one call that waits for a stream."""

    def __enter__(self):
        self.number = 0
        original = hybridep.Routing.counts

        def counted(routing, *arguments):
            self.number += 1
            return original(routing, *arguments)

        self._patch = unittest.mock.patch.object(hybridep.Routing, "counts", counted)
        self._patch.start()
        return self

    def __exit__(self, *_):
        self._patch.stop()


def count_waits(buffer, rank, selections=2, **options):
    with Waits() as waits:
        result = check_round_trip(buffer, rank, 10, selections, **options)
    return waits.number, result


UNSEEN = {"non_blocking": True, "num_permuted_tokens": 256}


def waits_for_maps(rank, num_ranks):
    buffer = new_buffer()
    assert count_waits(buffer, rank, **UNSEEN)[0] == 1, "the first map of a buffer"
    number, result = count_waits(buffer, rank, **UNSEEN)
    assert number == 0
    assert result[3].tolist() == count_waits(buffer, rank)[1][3].tolist()
    assert count_waits(buffer, rank)[0] == 1, "a blocking call"
    with Waits() as waits:
        buffer.dispatch_with_permute(
            hidden=tokens_of(rank, 10), handle=result[-1], num_permuted_tokens=100
        )
        flat = buffer.dispatch(
            tokens_of(rank, 10), routing_map=map_of(10, 12, 2), num_dispatched_tokens=20
        )
        buffer.dispatch(tokens_of(rank, 10), handle=flat[-1])
        buffer.combine(flat[0], None, flat[-1])
    assert waits.number == 0
    with Waits() as waits:
        buffer.dispatch(tokens_of(rank, 10), routing_map=map_of(10, 12, 2))
    assert waits.number == 1


def waits_with_keyword(rank, num_ranks):
    buffer = new_buffer(max_top_k=2)
    assert count_waits(buffer, rank, **UNSEEN)[0] == 0


def waits_for_ids(rank, num_ranks):
    buffer, ids = new_buffer(), torch.arange(2).expand(10, 2).contiguous()
    with Waits() as waits:
        buffer.dispatch_with_permute(
            hidden=tokens_of(rank, 10), topk_idx=ids, num_of_experts=12, **UNSEEN
        )
    assert waits.number == 0


def selections_unseen(rank, num_ranks):
    """The first map of a buffer may have any number; a later one cannot grow unseen."""
    buffer = new_buffer()
    check_round_trip(buffer, rank, 10, 9, **UNSEEN)
    check_round_trip(buffer, rank, 10, 9, **UNSEEN)
    buffer.dispatch_with_permute(
        hidden=tokens_of(rank, 10), routing_map=map_of(10, 12, 10), **UNSEEN
    )
    for _ in range(2):
        text = "selects 10 experts.*max_top_k to HybridEPBuffer.* 9"
        with unittest.TestCase().assertRaisesRegex(ValueError, text):
            check_round_trip(buffer, rank, 10, 2)


class Waiting(unittest.TestCase):
    def test_maps(self):
        gang.run(waits_for_maps)

    def test_maps_whose_selections_were_told(self):
        gang.run(waits_with_keyword)

    def test_ids(self):
        gang.run(waits_for_ids)

    def test_more_selections_than_could_be_seen_are_told_in_the_next_call(self):
        gang.run(selections_unseen)


# ---------------------------------------------------------------------------------- life of handles


def dropped_handles(rank, num_ranks):
    """A handle owns its routing until its last reference goes, on whatever thread."""
    buffer = new_buffer()
    results = [check_round_trip(buffer, rank, 10, 2) for _ in range(6)]
    routings = [weakref.ref(result[-1][0].routing) for result in results]
    thread = threading.Thread(target=results.pop, args=(3,))
    thread.start()
    thread.join()
    assert [routing() is None for routing in routings] == [False] * 3 + [True] + [False] * 2
    check_combine(buffer, tokens_of(rank, 10), results[3], 2)
    results.clear()
    assert all(routing() is None for routing in routings)


def outlived_buffer(rank, num_ranks):
    """A handle keeps what it needs, and results stay when all else has gone."""
    buffer = new_buffer()
    result = check_round_trip(buffer, rank, 10, 2)
    kept = result[-1][7], result[-1][10], result[3]
    expected = [tensor.tolist() for tensor in kept]
    communicator = weakref.ref(result[-1][0].routing.communicator)
    del result, buffer
    gc.collect()
    assert [tensor.tolist() for tensor in kept] == expected
    del kept
    gc.collect()
    assert communicator() is None


def old_communicator(rank, num_ranks):
    """A communicator that was outgrown goes with the last handle of it."""
    buffer = new_buffer()
    result = check_round_trip(buffer, rank, 10, 2)
    communicator = weakref.ref(result[-1][0].routing.communicator)
    check_round_trip(buffer, rank, 10, 2, hidden=2 * HIDDEN)
    assert communicator() is not None
    del result
    gc.collect()
    assert communicator() is None
    check_round_trip(buffer, rank, 10, 2)


def captured(rank, num_ranks):
    """What would end the capture of a graph is refused."""
    test, ids = unittest.TestCase(), torch.arange(9).expand(10, 9).contiguous()
    x, selected, usage = tokens_of(rank, 10), map_of(10, 12, 2), hybridep.InvalidUsageError
    buffer, told = new_buffer(), new_buffer(max_top_k=2)
    with unittest.mock.patch.object(deep_ep._device, "is_capturing", lambda _: True):
        with test.assertRaisesRegex(usage, "give max_top_k to HybridEPBuffer"):
            buffer.dispatch_with_permute(hidden=x, routing_map=selected, **UNSEEN)
        with test.assertRaisesRegex(usage, "non_blocking is False"):
            told.dispatch_with_permute(hidden=x, routing_map=selected)
        with test.assertRaisesRegex(usage, "num_dispatched_tokens is None"):
            told.dispatch(x, routing_map=selected)
        with test.assertRaisesRegex(usage, "cannot grow while a graph is captured"):
            told.dispatch_with_permute(hidden=x, topk_idx=ids, num_of_experts=12, **UNSEEN)
        check_round_trip(told, rank, 10, 2, **UNSEEN)


def kept_for_graphs(rank, num_ranks):
    """A graph owns the memory of routings that were made in it. What else it needs stays."""
    buffer = new_buffer(max_top_k=2)
    before = check_round_trip(buffer, rank, 10, 2)
    with unittest.mock.patch.object(deep_ep._device, "is_capturing", lambda _: True):
        inside = check_round_trip(buffer, rank, 10, 2, **UNSEEN)
        check_combine(buffer, tokens_of(rank, 10), before, 2)
    made_before, made_inside = (weakref.ref(r[-1][0].routing) for r in (before, inside))
    communicator = weakref.ref(made_before().communicator)
    del before, inside, buffer
    gc.collect()
    assert not made_before().closed and not communicator().closed
    assert made_inside() is None


class Handles(unittest.TestCase):
    def test_a_dropped_handle_frees_its_routing(self):
        gang.run(dropped_handles)

    def test_a_graph_keeps_what_it_was_captured_with(self):
        gang.run(kept_for_graphs)

    def test_what_would_end_a_capture_is_refused(self):
        gang.run(captured)

    def test_results_outlive_handle_and_buffer(self):
        gang.run(outlived_buffer)

    def test_an_outgrown_communicator_lives_as_long_as_its_handles(self):
        gang.run(old_communicator)
