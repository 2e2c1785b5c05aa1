#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the PTX and the machine code of every kernel, for each architecture, without a GPU:
- Volatile and atomic accesses name their state space. Without one the address is generic, which once made
  a kernel parameter an illegal address.
- Nothing is spilled, and there is no stack.
- A block of the most threads that __launch_bounds__ admits finds its registers.
- Static shared memory stays within what is left beside the dynamic shared memory that launches ask for.
Prints one sentence a finding. BLOCKS is the folder of headers that state the budgets, one an operation.
usage: machine_code.py ARCHITECTURE[,...] BLOCKS (CU PTX PTXAS_REPORT)..."""

import math
import os
import re
import subprocess
import sys

ORDERS = {"volatile", "relaxed", "acquire", "release", "mmio"}
SPACES = ("global", "shared", "local", "const", "param")

# Registers are given out in eights a thread. The warps of a block are dealt out to the quarters of an SM,
# each of which has a quarter of the registers.
REGISTERS_OF_QUARTER = 65536 // 4
REGISTER_UNIT = 8
WARP_SIZE = 32


def main(architectures, blocks, *files):
    targets = ["sm_" + architecture for architecture in architectures.split(",")]
    (default_budget,) = static_budgets(os.path.join(blocks, "common.h"))
    findings = []
    for source, ptx, report in zip(files[::3], files[1::3], files[2::3]):
        operation = os.path.basename(os.path.dirname(source))
        (budget,) = static_budgets(os.path.join(blocks, operation + ".h")) or [default_budget]
        findings += check(os.path.basename(source), Ptx(ptx), read_report(report), targets, budget)
    for finding in readable(findings):
        print(finding)
    print(f"{len(files) // 3} files for {', '.join(targets)}: {len(findings)} findings")
    return 1 if findings or not files else 0


def check(source, ptx, functions, targets, budget):
    yield from ptx.findings
    for target in targets:
        kernels = {name for name, of in ptx.max_threads if of == target}
        compiled = {name for name, of in functions if of == target and functions[name, of].registers}
        if not kernels or kernels != compiled:
            yield f"{source} has {len(kernels)} kernels in PTX for {target}, {len(compiled)} in machine code"
    for (name, target), function in functions.items():
        for finding in function.findings(ptx.max_threads.get((name, target)), budget):
            yield f"{name} for {target}: {finding}"


def static_budgets(header):
    """The budgets for static shared memory that a header states."""
    with open(header) as text:
        return [int(n) for n in re.findall(r"constexpr int k\w*StaticBytes = (\d+);", text.read())]


class Ptx:
    """The PTX of a .cu file for all architectures, one after the other."""

    def __init__(self, path):
        self.max_threads = {}  # of each kernel and target; 0 without __launch_bounds__
        self.findings = []
        with open(path) as text:
            for module in re.split(r"^(?=\.version)", text.read(), flags=re.MULTILINE)[1:]:
                self.read_module(module)

    def read_module(self, module):
        target = re.search(r"^\.target (\w+)", module, re.MULTILINE)[1]
        paths = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', module, re.MULTILINE))
        function = location = "?"
        for line in module.splitlines():
            words = line.split(None, 4)
            if not words or words[0].startswith("//"):
                continue
            if words[0] == ".loc":
                location = f"{os.path.basename(paths.get(words[1], '?'))}:{words[2]}"
            elif words[0] == ".maxntid":
                sizes = map(int, re.findall(r"\d+", line))
                self.max_threads[function, target] = math.prod(sizes)
            elif ".entry" in words or ".func" in words:
                function = re.search(r"(\w+)\(?$", line)[1]
                if ".entry" in words:
                    self.max_threads[function, target] = 0
            else:
                for instruction in instructions_of(line):
                    if not names_space(opcode_of(instruction)):
                        self.findings.append(f"{function} for {target}: {instruction} ({location})"
                                             " names no state space")


def instructions_of(line):
    """Inline assembly may put several on a line, in braces."""
    return [text for text in (" ".join(part.split()) for part in re.split("[;{}]", line)) if text]


def opcode_of(instruction):
    words = instruction.split(None, 2)
    return words[1] if words[0].startswith("@") and len(words) > 1 else words[0]


def names_space(opcode):
    """Whether a PTX instruction names a state space, if it must."""
    name, *modifiers = opcode.rstrip(";").split(".")
    is_atomic = name in ("atom", "red") or name in ("ld", "st") and ORDERS.intersection(modifiers)
    return not is_atomic or any(modifier.startswith(SPACES) for modifier in modifiers)


class Function:
    """What ptxas reports of a function; of a kernel with registers and shared memory."""

    def __init__(self):
        self.stack = self.spill_stores = self.spill_loads = self.shared = 0
        self.registers = None

    def findings(self, max_threads, budget):
        if self.stack or self.spill_stores or self.spill_loads:
            yield (f"ptxas makes a stack frame of {self.stack} bytes, with {self.spill_stores} bytes of"
                   f" spill stores and {self.spill_loads} of loads")
        if self.shared > budget:
            yield f"static shared memory takes {self.shared} bytes, but its budget is {budget}"
        if self.registers is None:
            return
        if not max_threads:
            yield "the kernel has no __launch_bounds__"
            return
        warps_of_quarter = -(-max_threads // (4 * WARP_SIZE))
        registers = -(-self.registers // REGISTER_UNIT) * REGISTER_UNIT
        if warps_of_quarter * WARP_SIZE * registers > REGISTERS_OF_QUARTER:
            yield f"a block of {max_threads} threads with {self.registers} registers each does not fit"


def read_report(path):
    """Functions by name and target."""
    functions = {}
    with open(path) as text:
        for line in text:
            if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
                kernel, target = match.groups()
            elif match := re.search(r"Function properties for (\w+)", line):
                function = functions.setdefault((match[1], target), Function())
            elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores,"
                                    r" (\d+) bytes spill loads", line):
                function.stack, function.spill_stores, function.spill_loads = map(int, match.groups())
            elif match := re.search(r"Used (\d+) registers", line):
                function = functions.setdefault((kernel, target), Function())
                function.registers = int(match[1])
                if match := re.search(r"(\d+) bytes smem", line):
                    function.shared = int(match[1])
    return functions


def readable(lines):
    """The same lines with names as in the source."""
    text = subprocess.run(["c++filt"], input="\n".join(lines), stdout=subprocess.PIPE, text=True, check=True)
    clutter = r"^void |hep::(\w+::)?(_GLOBAL__N_\w+::|\(anonymous namespace\)::)?|\(hep::\w+Args\)"
    return [re.sub(clutter, "", line)
            for line in text.stdout.splitlines()]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
