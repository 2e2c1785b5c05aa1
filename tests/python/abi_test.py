# SPDX-License-Identifier: Apache-2.0
"""Structs, enums and functions of the package are those of the header, as a compiler reads it."""

import ctypes
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from hybridep import _abi, _enums

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = ROOT / "include/hybridep.h"

STRUCTS = {
    "hepConfig_t": _abi.Config,
    "hepWorkspace_t": _abi.Workspace,
    "hepUniqueId_t": _abi.UniqueId,
    "hepLimits_t": _abi.Limits,
    "hepFailure_t": _abi.Failure,
    "hepRoutingConfig_t": _abi.RoutingConfig,
    "hepUpdate_t": _abi.Update,
    "hepRowCounters_t": _abi.RowCounters,
    "hepRoutingView_t": _abi.RoutingView,
    "hepRoutingCounts_t": _abi.RoutingCounts,
    "hepDispatchArgs_t": _abi.DispatchArgs,
    "hepCombineArgs_t": _abi.CombineArgs,
}
# The enum, and what the names of its constants begin with.
ENUMS = {
    "hepResult_t": (_enums.Result, "hep(?:Error)?"),
    "hepBackend_t": (_enums.Backend, "hepBackend"),
    "hepDataType_t": (_enums.DataType, "hepType"),
    "hepLogLevel_t": (_enums.LogLevel, "hepLog"),
    "hepOperation_t": (_enums.Operation, "hepOperation"),
    "hepPhase_t": (_enums.Phase, "hepPhase"),
    "hepMode_t": (_enums.Mode, "hepMode"),
    "hepIndexType_t": (_enums.IndexType, "hepIndex"),
    "hepLayout_t": (_enums.Layout, "hepLayout"),
    "hepOverflow_t": (_enums.Overflow, "hepOverflow"),
    "hepQuantization_t": (_enums.Quantization, "hepQuantize"),
    "hepWeightMode_t": (_enums.WeightMode, "hepWeights"),
}
WITHOUT_ARGUMENTS_TO_DECLARE = {"hepGetErrorString", "hepGetLastError"}


def header_text():
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)


def bodies(kind):
    """The bodies of all `typedef struct` or `typedef enum` of the header, by name."""
    found = re.findall(rf"typedef {kind} {{(.*?)}} (\w+);", header_text(), re.DOTALL)
    return {name: body for body, name in found}


def fields_of(body):
    return re.findall(r"(\w+)(?:\[\w+\])?;", body)


def constants_of(body):
    return re.findall(r"(\w+) = \d+", body)


def plain_name(constant, prefix=""):
    """hepTypeFloat8E4M3 and FLOAT8_E4M3 -> float8e4m3"""
    return re.sub(f"^{prefix}", "", constant).replace("_", "").lower()


def run_c(statements):
    """The numbers that a C program prints."""
    source = "#include <stddef.h>\n#include <stdio.h>\n#include <hybridep.h>\nint main(void) {\n"
    source += "\n".join(f'printf("%lld\\n", (long long)({value}));' for value in statements)
    source += "\nreturn 0;\n}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "print.c").write_text(source, encoding="utf-8")
        compiler = os.environ.get("CC", "cc").split()
        options = ["-I", str(HEADER.parent), "-o", str(path / "print"), str(path / "print.c")]
        subprocess.run(compiler + options, check=True)
        printed = subprocess.run([str(path / "print")], check=True, stdout=subprocess.PIPE)
    return [int(line) for line in printed.stdout.split()]


class Abi(unittest.TestCase):
    def test_every_struct_has_the_headers_fields(self):
        declared = {name: [field[0] for field in kind._fields_] for name, kind in STRUCTS.items()}
        self.assertEqual(
            {name: fields_of(body) for name, body in bodies("struct").items()}, declared
        )

    def test_sizes_offsets_and_magic_numbers_are_the_compilers(self):
        expressions, expected = [], []
        for name, kind in STRUCTS.items():
            expressions.append(f"sizeof({name})")
            expected.append(ctypes.sizeof(kind))
            for field, _ in kind._fields_:
                expressions.append(f"offsetof({name}, {field})")
                expected.append(getattr(kind, field).offset)
            if issubclass(kind, _abi.Struct):
                magic = re.sub(r"(?<!^)(?=[A-Z])", "_", name[3:-2]).upper()
                expressions.append(f"HEP_{magic}_MAGIC")
                expected.append(kind.magic_number)
        printed = dict(zip(expressions, run_c(expressions)))
        self.assertEqual(printed, dict(zip(expressions, expected)))

    def test_every_enum_has_the_headers_constants(self):
        self.assertEqual(set(ENUMS), set(bodies("enum")))
        for name, body in bodies("enum").items():
            kind, prefix = ENUMS[name]
            constants = constants_of(body)
            expected = dict(zip([plain_name(c, prefix) for c in constants], run_c(constants)))
            self.assertEqual(expected, {plain_name(m.name): int(m) for m in kind}, name)

    def test_every_function_is_declared(self):
        functions = set(re.findall(r"HEP_API [\w\s*]*?(hep\w+)\(", header_text()))
        self.assertEqual(functions, set(_abi._ARGUMENTS) | WITHOUT_ARGUMENTS_TO_DECLARE)

    def test_the_version_and_the_size_of_an_id_are_the_headers(self):
        self.assertEqual(
            run_c(["HEP_VERSION", "HEP_UNIQUE_ID_BYTES"]),
            [_abi.HEADER_VERSION, _abi.UNIQUE_ID_BYTES],
        )
