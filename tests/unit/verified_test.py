#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The record of a run on a GPU: what asks for a new run, and what does not."""

import contextlib
import importlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True  # the source tree stays as it is
TREE = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TREE / "tests"))
verified = importlib.import_module("verified")

KERNEL = """// Adds.
#include "shared.cuh"
namespace {
__global__ void __launch_bounds__(32) kernel(int* out) { if (out) *out = added(*out) + 1; }
}  // namespace
void launch(int* out) { kernel<<<1, kThreads>>>(out); }
"""
SHARED = """#pragma once
constexpr int kThreads = 32;  // a constant
__device__ inline int added(int value) { return value + 3; }
"""
BACKEND = '#include <cstdio>\nvoid warn() { std::puts("a  // text"); }\n'


class Tree(unittest.TestCase):
    """A tree with one kernel, verified as it is."""

    nvcc = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.addCleanup(setattr, verified, "find_nvcc", verified.find_nvcc)
        verified.find_nvcc = lambda: self.nvcc
        self.write("src/nvcc_flags", "-std=c++17")
        self.write("src/backend/cuda/kernels/add.cu", KERNEL)
        self.write("src/backend/cuda/kernels/shared.cuh", SHARED)
        self.write("src/backend/cuda/backend.cc", BACKEND)
        self.write("src/base/log.cc", "int lines = 1;")
        self.record(verified.fingerprint(self.root))

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def record(self, fingerprint):
        self.write(verified.RECORD, json.dumps(
            {
                "date": "2000-01-01",
                "fingerprint": fingerprint,
                "machine": {"gpus": ["NVIDIA H200"]},
                "not_run": {"faults": "needs 3 GPUs"},
            }
        ))

    def check(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = verified.main(["--root", str(self.root), "--check"])
        return status, said.getvalue()

    def expect_verified(self):
        self.assertEqual(self.check()[0], 0)

    def expect_refused(self, words):
        status, said = self.check()
        self.assertEqual(status, 1)
        self.assertEqual(said.count("\n"), 1)
        self.assertIn(words, said)
        self.assertIn("run tests/verify_gpu.sh", said)


class Sources(Tree):
    def test_an_untouched_tree_is_verified(self):
        self.expect_verified()

    def test_without_a_record_nothing_is_verified(self):
        (self.root / verified.RECORD).unlink()
        self.expect_refused("Nothing has been verified")

    def test_a_record_that_cannot_be_read_is_refused(self):
        for text in ["{", "{}", "[]"]:
            self.write(verified.RECORD, text)
            self.expect_refused("is not a record")

    def test_comments_and_white_space_do_not_count(self):
        self.write("src/backend/cuda/backend.cc", "/* A\n*/" + BACKEND.replace(" {", "\n{ // more\n"))
        self.write("src/backend/cuda/kernels/shared.cuh", SHARED.replace("a constant", "it's added"))
        self.expect_verified()

    def test_text_in_quotes_counts(self):
        self.write("src/backend/cuda/backend.cc", BACKEND.replace("a  // text", "a // text"))
        self.expect_refused("constants, launches or memory")

    def test_host_only_sources_do_not_count(self):
        self.write("src/base/log.cc", "int lines = 2;")
        self.expect_verified()

    def test_moved_and_renamed_files_are_the_same(self):
        (self.root / "src/backend/cuda/kernels/shared.cuh").rename(
            self.root / "src/backend/cuda/common.cuh"
        )
        (self.root / "src/backend/cuda/kernels/add.cu").unlink()
        self.write("src/backend/cuda/new/add.cu", KERNEL.replace('"shared.cuh"', '"backend/cuda/common.cuh"'))
        (self.root / "src/backend/cuda/backend.cc").rename(
            self.root / "src/backend/cuda/new/other.cc"
        )
        self.expect_verified()

    def test_a_constant_of_a_kernel_counts(self):
        self.write("src/backend/cuda/kernels/shared.cuh", SHARED.replace("+ 3", "+ 4"))
        self.expect_refused("the code of the kernels")

    def test_a_constant_of_a_launch_counts(self):
        self.write("src/backend/cuda/kernels/shared.cuh", SHARED.replace("= 32", "= 64"))
        self.expect_refused("constants, launches or memory")

    def test_a_launch_counts(self):
        self.write("src/backend/cuda/kernels/add.cu", KERNEL.replace("<1,", "<2,"))
        self.expect_refused("constants, launches or memory")

    def test_a_flag_of_nvcc_counts(self):
        self.write("src/nvcc_flags", "-std=c++17 -DFAST")
        self.expect_refused("constants, launches or memory")


@unittest.skipUnless(verified.find_nvcc(), "there is no nvcc")
class Ptx(Tree):
    nvcc = verified.find_nvcc()

    def test_another_spelling_of_the_same_code_is_the_same(self):
        self.write("src/backend/cuda/kernels/shared.cuh", SHARED.replace("+ 3", "+ (1 + 2)"))
        self.expect_verified()
        self.nvcc = None  # the sources decide alone
        self.expect_refused("the code of the kernels")

    def test_a_constant_of_a_kernel_counts(self):
        self.write("src/backend/cuda/kernels/shared.cuh", SHARED.replace("+ 3", "+ 4"))
        self.expect_refused("the code of the kernels")

    def test_another_folder_gives_the_same(self):
        here = verified.ptx_part(self.root, self.nvcc)
        self.write("src/deeper/sum.cu", KERNEL.replace("shared", "backend/cuda/kernels/shared"))
        (self.root / "src/backend/cuda/kernels/add.cu").unlink()
        self.assertEqual(verified.ptx_part(self.root, self.nvcc), here)


class DeviceBodies(unittest.TestCase):
    """What is left out of the part of the host."""

    def expect_left(self, text, left):
        tokens = verified.without_device_bodies(verified.tokens_of(text))
        self.assertEqual(tokens, verified.tokens_of(left))

    def test_bodies_of_device_functions_are(self):
        self.expect_left("__device__ int f(int a = g({})) { if (a) { b(); } } int c;",
                         "__device__ int f(int a = g({})) {} int c;")
        self.expect_left("__global__ void __launch_bounds__(32) f() { b; } void g() { c; }",
                         "__global__ void __launch_bounds__(32) f() {} void g() { c; }")

    def test_all_else_is_not(self):
        for text in [
            "__host__ __device__ int f() { return 1; }",
            "__device__ __host__ int f() { return 1; }",
            "__device__ int f(); void g() { a; }",
            "__device__ constexpr int kTable[] = {1, 2};",
            "__device__ int unbalanced() { {",
        ]:
            self.expect_left(text, text)


class ThisTree(unittest.TestCase):
    def test_every_pattern_names_files(self):
        for pattern in verified.PATTERNS + [verified.KERNELS]:
            self.assertTrue(verified.matches_of(TREE, [pattern]), pattern)


if __name__ == "__main__":
    unittest.main()
