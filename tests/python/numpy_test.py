# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine of NumPy arrays on the host backend."""

import unittest
import weakref

import hybridep
from hybridep import DataType, Layout, WeightMode
from ranks import run_ranks

try:
    import numpy as np
    from reference import Job
except ImportError:
    raise unittest.SkipTest("NumPy is not installed") from None

TOKENS = [5, 0, 9, 16]


class Layer(unittest.TestCase):
    """A layer whose experts return what they get."""

    def run_job(self, body, num_ranks=2, **fields):
        job = Job(num_ranks, num_ranks, TOKENS[:num_ranks])

        def run(communicator):
            with hybridep.Routing(communicator, alignment=8) as routing:
                routing.update(job.experts[communicator.rank])
                body(job, communicator.rank, routing)

        run_ranks(num_ranks, run, type=DataType.FLOAT32, partial_type=DataType.FLOAT32, **fields)

    def test_expert_major_rows_come_in_order_with_padding(self):
        def body(job, rank, routing):
            result = routing.dispatch(
                job.x[rank],
                weights=job.weights[rank],
                row_weights=True,
                row_sources=True,
                row_tokens=True,
            )
            rows, weights, sources, tokens = job.dispatched(rank, 8)
            np.testing.assert_array_equal(result.rows, rows)
            np.testing.assert_array_equal(result.row_weights, weights)
            np.testing.assert_array_equal(result.row_sources, sources)
            np.testing.assert_array_equal(result.row_tokens, tokens)
            self.assertIs(type(result.rows), np.ndarray)
            self.assertEqual(result.capacity, len(rows))

        for num_ranks in (1, 2, 4):
            self.run_job(body, num_ranks)

    def test_counts_are_those_of_the_batch(self):
        def body(job, rank, routing):
            counts = routing.counts()
            self.assertEqual(list(counts.tokens_per_expert), job.tokens_per_expert(rank))
            self.assertEqual(counts.num_flat_rows, len(job.flat_rows(rank)))
            self.assertEqual(counts.num_expert_rows, sum(job.tokens_per_expert(rank)))
            self.assertEqual(counts.num_padded_rows, len(job.expert_rows(rank, 8)))
            self.assertEqual(counts.max_expert_rows, max(job.tokens_per_expert(rank)))
            selections = max(
                (experts >= 0).sum(axis=1, initial=0).max(initial=0) for experts in job.experts
            )
            self.assertEqual(counts.max_selections, selections)

        self.run_job(body)

    def test_combine_returns_the_weighted_sum(self):
        def body(job, rank, routing):
            rows = routing.dispatch(job.x[rank], weights=job.weights[rank]).rows
            out = routing.combine(rows, weight_mode=WeightMode.DISPATCHED).out
            np.testing.assert_array_equal(out, job.combined(rank, True))

        for num_ranks in (1, 2, 4):
            self.run_job(body, num_ranks)

    def test_combine_weighs_rows_and_returns_gradients(self):
        def body(job, rank, routing):
            result = routing.dispatch(job.x[rank], weights=job.weights[rank], row_weights=True)
            out = routing.combine(
                result.rows, row_weights=result.row_weights, row_gradients=result.row_weights
            )
            np.testing.assert_array_equal(out.out, job.combined(rank, True))
            selected = job.experts[rank] >= 0
            np.testing.assert_array_equal(out.gradients, job.weights[rank] * selected)

        self.run_job(body)

    def test_weights_and_gradients_may_be_dense(self):
        def body(job, rank, routing):
            dense = np.zeros((len(job.x[rank]), job.num_experts), "float32")
            summed = np.zeros_like(dense)
            for token, k in np.argwhere(job.experts[rank] >= 0):
                expert = job.experts[rank][token, k]
                dense[token, expert] = 1 + expert
                summed[token, expert] += 1 + expert
            result = routing.dispatch(job.x[rank], dense_weights=dense, row_weights=True)
            rows = job.expert_rows(rank, 8)
            experts = [0 if r is None else 1 + job.experts[r[0]][r[1], r[2]] for r in rows]
            np.testing.assert_array_equal(result.row_weights, experts)
            returned = routing.combine(
                result.rows, row_gradients=result.row_weights, dense_gradients=True
            )
            np.testing.assert_array_equal(returned.dense_gradients, summed)
            self.assertIsNone(returned.gradients)

        self.run_job(body)

    def test_flat_rows_come_in_order_with_experts_and_weights(self):
        def body(job, rank, routing):
            result = routing.dispatch(
                job.x[rank],
                layout=Layout.FLAT,
                weights=job.weights[rank],
                row_weights=True,
                row_experts=True,
                row_sources=True,
                row_tokens=True,
                gather=True,
            )
            rows = job.flat_rows(rank)
            first = rank * job.num_local_experts
            self.assertEqual(list(zip(result.row_sources, result.row_tokens)), rows)
            for place, (source, token) in enumerate(rows):
                experts = job.experts[source][token]
                is_local = np.isin(experts, job.local_experts(rank))
                np.testing.assert_array_equal(result.rows[place], job.x[source][token])
                np.testing.assert_array_equal(
                    result.row_experts[place], np.where(is_local, experts - first, -1)
                )
                np.testing.assert_array_equal(
                    result.row_weights[place], np.where(is_local, job.weights[source][token], 0)
                )
            places = [-1 if r is None else rows.index(r[:2]) for r in job.expert_rows(rank, 8)]
            self.assertEqual(list(result.gather[: len(places)]), places)

        self.run_job(body)

    def test_padded_rows_have_a_block_for_each_expert(self):
        def body(job, rank, routing):
            result = routing.dispatch(job.x[rank], layout=Layout.EXPERT_PADDED, expert_rows=True)
            counts = job.tokens_per_expert(rank)
            self.assertEqual(list(result.expert_rows), counts)
            self.assertEqual(result.rows.shape, (job.num_local_experts, max(counts), job.hidden))
            for local, expert in enumerate(job.local_experts(rank)):
                expected = [job.x[source][token] for source, token, _ in job.selections(expert)]
                np.testing.assert_array_equal(result.rows[local, : counts[local]], expected)
            out = routing.combine(result.rows, layout=Layout.EXPERT_PADDED).out
            np.testing.assert_array_equal(out, job.combined(rank, False))

        self.run_job(body)

    def test_an_update_comes_with_the_dispatch(self):
        def body(job, rank, routing):
            job = job.with_experts([np.ascontiguousarray(e[:, ::-1]) for e in job.experts])
            rows, _, _, tokens = job.dispatched(rank, 8)
            result = routing.dispatch(
                job.x[rank], indices=job.experts[rank], capacity=len(rows), row_tokens=True
            )
            np.testing.assert_array_equal(result.rows, rows)
            np.testing.assert_array_equal(result.row_tokens, tokens)
            self.assertEqual(routing.num_tokens, len(job.x[rank]))

        self.run_job(body)

    def test_operations_come_in_halves(self):
        job = Job(7, 2, TOKENS[:2])

        def body(communicator):
            rank = communicator.rank
            mode = hybridep.Mode.LOW_LATENCY
            routings = [hybridep.Routing(communicator, mode=mode, lane=lane) for lane in (0, 1)]
            for routing in routings:
                routing.update(job.experts[rank])
            sent = [routing.dispatch(job.x[rank], send_only=True) for routing in routings]
            for routing in routings:
                routing.dispatch_receive()
            for result in sent:
                np.testing.assert_array_equal(result.rows, job.dispatched(rank)[0])
            returned = [
                routing.combine(result.rows, send_only=True)
                for routing, result in zip(routings, sent)
            ]
            for routing, result in zip(routings, returned):
                routing.combine_receive()
                np.testing.assert_array_equal(result.out, job.combined(rank, False))

        run_ranks(2, body, type=DataType.FLOAT32, low_latency_tokens=16)

    def test_rows_past_the_capacity_are_dropped_and_counted(self):
        def body(job, rank, routing):
            rows, _, _, _ = job.dispatched(rank, 8)
            given = np.full((len(rows) - 1, job.hidden), 99, "float32")
            result = routing.dispatch(job.x[rank], rows=given)
            self.assertIs(result.rows, given)
            np.testing.assert_array_equal(given, rows[:-1])
            counters = np.asarray(routing.view().row_counters)
            self.assertEqual(list(counters), [len(rows), len(rows) - 1, 1])

        self.run_job(body)

    def test_counts_are_outputs_of_the_dispatch(self):
        """With drops the counts are of what was written: the last block is cut."""

        def body(job, rank, routing):
            rows = job.expert_rows(rank, 8)
            blocks = [8 * -(-count // 8) for count in job.tokens_per_expert(rank)]
            capacity = len(rows) - blocks[-1] + 1
            result = routing.dispatch(
                job.x[rank],
                capacity=capacity,
                expert_rows=True,
                group_sizes=True,
                row_counters=True,
            )
            last = min(1, job.tokens_per_expert(rank)[-1])
            self.assertEqual(list(result.expert_rows), job.tokens_per_expert(rank)[:-1] + [last])
            self.assertEqual(list(result.group_sizes), blocks[:-1] + [min(1, blocks[-1])])
            written = min(capacity, len(rows))
            self.assertEqual(
                list(result.row_counters), [len(rows), written, int(len(rows) > capacity)]
            )

        self.run_job(body)

    def test_a_call_has_a_row_length_of_its_own(self):
        def body(job, rank, routing):
            x = np.ascontiguousarray(job.x[rank][:, :4])
            rows = routing.dispatch(x).rows
            np.testing.assert_array_equal(rows, job.dispatched(rank, 8)[0][:, :4])
            out = routing.combine(rows).out
            np.testing.assert_array_equal(out, job.combined(rank, False)[:, :4])

        self.run_job(body)

    def test_a_map_selects_experts_in_ascending_order(self):
        def body(job, rank, routing):
            selected = np.zeros((len(job.x[rank]), job.num_experts), bool)
            for token, experts in enumerate(job.experts[rank]):
                selected[token, experts[experts >= 0]] = True
            routing.update(selected, top_k=job.top_k)
            rows = routing.dispatch(job.x[rank]).rows
            out = routing.combine(rows).out
            np.testing.assert_array_equal(out, job.x[rank] * selected.sum(axis=1)[:, None])

        self.run_job(body)

    def test_the_view_tells_the_counts_on_the_device(self):
        def body(job, rank, routing):
            view = routing.view()
            self.assertEqual(list(np.asarray(view.tokens_per_expert)), job.tokens_per_expert(rank))
            self.assertEqual(np.asarray(view.expert_offsets)[-1], len(job.expert_rows(rank, 8)))
            self.assertEqual(np.asarray(view.num_flat_rows)[0], len(job.flat_rows(rank)))
            self.assertEqual(np.asarray(view.num_expert_rows)[0], sum(job.tokens_per_expert(rank)))

        self.run_job(body)


class Memory(unittest.TestCase):
    """Routings in memory that the caller brings."""

    @staticmethod
    def aligned(num_bytes):
        memory = np.empty(num_bytes + 256, "uint8")
        return memory[-memory.ctypes.data % 256 :][:num_bytes]

    def test_a_routing_lives_in_it_and_keeps_it_alive(self):
        job = Job(6, 2, TOKENS[:2])

        def body(communicator):
            rank, sizes = communicator.rank, {"max_tokens": 8, "max_top_k": 2}
            num_bytes = communicator.routing_bytes(**sizes)
            self.assertLess(num_bytes, communicator.routing_bytes())
            memory = self.aligned(num_bytes)
            kept = weakref.ref(memory)
            routing = hybridep.Routing(communicator, memory=memory, **sizes)
            del memory
            routing.update(job.experts[rank])
            rows = routing.dispatch(job.x[rank]).rows
            np.testing.assert_array_equal(rows, job.dispatched(rank)[0])
            self.assertIsNotNone(kept())
            del routing
            self.assertIsNotNone(kept(), "the next creation destroys the routing")
            hybridep.Routing(communicator).close()
            self.assertIsNone(kept())

        run_ranks(2, body, type=DataType.FLOAT32, max_top_k=4)

    def test_memory_that_does_not_do_is_refused(self):
        def body(communicator):
            num_bytes = communicator.routing_bytes()
            memory = self.aligned(num_bytes)
            for given, words in (
                (memory[:-256], "memory_bytes"),
                (self.aligned(num_bytes + 16)[16:], "memory lies at .* aligned to 256"),
                (memory[::2], "memory is strided"),
                (memoryview(memory).toreadonly(), "memory is read-only"),
            ):
                with self.assertRaisesRegex(hybridep.InvalidArgumentError, words):
                    hybridep.Routing(communicator, memory=given)
            with hybridep.Routing(communicator, memory=memory):
                with self.assertRaisesRegex(hybridep.InvalidArgumentError, "memory"):
                    hybridep.Routing(communicator, memory=memory)
            with self.assertRaisesRegex(hybridep.InvalidArgumentError, "max_tokens"):
                hybridep.Routing(communicator, max_tokens=17)
            with hybridep.Routing(communicator, max_tokens=2) as routing:
                with self.assertRaisesRegex(hybridep.InvalidArgumentError, "num_tokens"):
                    routing.update(np.zeros((3, 1), "int32"))

        run_ranks(1, body)


class Formats(unittest.TestCase):
    def test_types_that_are_not_known_are_refused(self):
        def body(communicator):
            with hybridep.Routing(communicator) as routing:
                routing.update(np.zeros((4, 1), "int32"))
                x = np.zeros((4, 8), "uint16")
                for arguments in (
                    {"scales": np.zeros((4, 2), "complex64")},
                    {"scales": x.astype("M8[s]")},
                ):
                    with self.assertRaisesRegex(ValueError, "scales has elements of type"):
                        routing.dispatch(x, dtype=DataType.BFLOAT16, **arguments)
                with self.assertRaisesRegex(ValueError, "array has elements of type complex64"):
                    communicator.register(np.zeros(4, "complex64"))

        run_ranks(1, body, scale_bytes=16)

    def test_plain_integers_are_what_dtype_says(self):
        """BF16 of small numbers is the upper half of FP32."""
        job = Job(1, 2, TOKENS[:2])

        def body(communicator):
            rank = communicator.rank
            x = (job.x[rank].view("uint32") >> 16).astype("uint16")
            with hybridep.Routing(communicator) as routing:
                routing.update(job.experts[rank].astype("int32"))
                rows = routing.dispatch(x, dtype=DataType.BFLOAT16).rows
                self.assertEqual(rows.dtype, x.dtype)
                out = routing.combine(rows, dtype=DataType.BFLOAT16).out
                widened = (out.astype("uint32") << 16).view("float32")
                np.testing.assert_array_equal(widened, job.combined(rank, False))

        run_ranks(2, body)

    def test_scales_travel_with_their_rows(self):
        job = Job(2, 2, TOKENS[:2])

        def body(communicator):
            rank = communicator.rank
            scales = np.arange(4 * len(job.x[rank]), dtype="float32").reshape(-1, 4) + 1000 * rank
            with hybridep.Routing(communicator) as routing:
                routing.update(job.experts[rank])
                result = routing.dispatch(
                    job.x[rank], scales=scales, row_sources=True, row_tokens=True
                )
                expected = [
                    [1000 * source + 4 * token + i for i in range(4)]
                    for source, token in zip(result.row_sources, result.row_tokens)
                ]
                np.testing.assert_array_equal(result.row_scales, expected)

        run_ranks(2, body, type=DataType.FLOAT32, scale_bytes=16)

    def test_scales_come_in_columns(self):
        job = Job(3, 1, [8])

        def body(communicator):
            scales = np.arange(32, dtype="float32").reshape(8, 4)
            with hybridep.Routing(communicator) as routing:
                routing.update(job.experts[0])
                result = routing.dispatch(
                    job.x[0],
                    scales=scales,
                    row_tokens=True,
                    row_scales_stride=32,
                    scale_element_bytes=4,
                )
                self.assertEqual(result.row_scales.shape, (4, 32))
                columns = result.row_scales[:, : result.capacity]
                np.testing.assert_array_equal(columns.T, scales[result.row_tokens])

        run_ranks(1, body, type=DataType.FLOAT32, scale_bytes=16)

    def test_bf16_is_quantised_on_the_way(self):
        """A block whose largest element is 448 has scale 1."""
        x = np.full((4, 16), 2, "float32")
        x[:, 0] = 448

        def body(communicator):
            bf16 = (x.view("uint32") >> 16).astype("uint16")
            with hybridep.Routing(communicator) as routing:
                routing.update(np.zeros((4, 1), "int64"))
                result = routing.dispatch(
                    bf16, dtype=DataType.FLOAT8_E4M3, quantize=hybridep.Quantization.FLOAT32
                )
                np.testing.assert_array_equal(result.row_scales, np.ones((4, 1), "float32"))
                np.testing.assert_array_equal(
                    result.rows.view("uint8"), np.tile([0x7E] + [0x40] * 15, (4, 1))
                )

        run_ranks(1, body, hidden=16, scale_bytes=4)


class OtherFrameworks(unittest.TestCase):
    """Arrays of frameworks that the machine may lack."""

    def test_ml_dtypes_names_the_types_that_numpy_lacks(self):
        try:
            import ml_dtypes
        except ImportError:
            self.skipTest("ml_dtypes is not installed")
        job = Job(4, 2, TOKENS[:2])

        def body(communicator):
            rank = communicator.rank
            with hybridep.Routing(communicator) as routing:
                routing.update(job.experts[rank])
                rows = routing.dispatch(job.x[rank].astype(ml_dtypes.bfloat16)).rows
                self.assertEqual(rows.dtype, ml_dtypes.bfloat16)
                out = routing.combine(rows).out
                np.testing.assert_array_equal(out.astype("float32"), job.combined(rank, False))

        run_ranks(2, body)

    def test_jax_arrays_are_taken_and_made(self):
        try:
            import jax
        except ImportError:
            self.skipTest("JAX is not installed")
        job = Job(5, 2, TOKENS[:2])

        def body(communicator):
            rank = communicator.rank
            with hybridep.Routing(communicator) as routing:
                routing.update(jax.numpy.asarray(job.experts[rank].astype("int32")))
                result = routing.dispatch(
                    jax.numpy.asarray(job.x[rank], jax.numpy.bfloat16), row_tokens=True
                )
                self.assertIsInstance(result.rows, jax.Array)
                self.assertEqual(result.rows.dtype, jax.numpy.bfloat16)
                np.testing.assert_array_equal(result.row_tokens, job.dispatched(rank)[3])
                out = routing.combine(result.rows * 2).out
                expected = 2 * job.combined(rank, False)
                np.testing.assert_array_equal(out.astype("float32"), expected)
                with self.assertRaisesRegex(ValueError, "out is read-only"):
                    routing.combine(result.rows, out=out)

        run_ranks(2, body)
