# SPDX-License-Identifier: Apache-2.0
"""The examples of the package's page run as they stand."""

import os
import pathlib
import re
import subprocess
import sys
import unittest

README = pathlib.Path(__file__).resolve().parents[2] / "src/bindings/python/README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


class Readme(unittest.TestCase):
    def run_example(self, number, *modules, **environment):
        for module in modules:
            try:
                __import__(module)
            except ImportError:
                self.skipTest(f"{module} is not installed")
        done = subprocess.run(
            [sys.executable, "-c", EXAMPLES[number]],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return sorted(done.stdout.splitlines())

    def test_all_examples_are_known(self):
        self.assertEqual(len(EXAMPLES), 2)

    def test_the_layer_of_numpy(self):
        self.assertEqual(self.run_example(0, "numpy"), ["rank 0 is right", "rank 1 is right"])

    def test_the_layer_of_pytorch(self):
        said = self.run_example(
            1,
            "torch",
            "torch.distributed",
            RANK="0",
            WORLD_SIZE="1",
            LOCAL_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT="0",
            HEP_BACKEND="host",
        )
        self.assertEqual(said, ["rank 0: (10, 32) (10, 2)"])
