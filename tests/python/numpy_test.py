# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine of NumPy arrays on the host backend."""

import unittest

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

        self.run_job(body)

    def test_combine_returns_the_weighted_sum(self):
        def body(job, rank, routing):
            rows = routing.dispatch(job.x[rank], weights=job.weights[rank]).rows
            out = routing.combine(rows, weight_mode=WeightMode.DISPATCHED).out
            np.testing.assert_array_equal(out, job.combined(rank, True))

        for num_ranks in (1, 2, 4):
            self.run_job(body, num_ranks)
