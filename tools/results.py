# SPDX-License-Identifier: Apache-2.0
"""Reads the JSON lines of the benchmarks."""
import json
import sys

SCHEMA = 1
# The work by which libraries are compared, with 8 experts a rank.
TARGET = {"tokens": 4096, "hidden": 7168, "top_k": 8, "routing": "uniform"}
EXPERTS_PER_RANK = 8


def read(paths, program):
    """The cases of a program in order. All must be right."""
    rows = []
    for path in paths:
        with open(path) as file:
            rows += [json.loads(line) for line in file]
    rows = [row for row in rows if row["program"] == program]
    for row in rows:
        if row["schema"] != SCHEMA:
            sys.exit(f"schema {row['schema']} of a {program} case is not {SCHEMA}")
        if row.get("wrong", 0) != 0:
            sys.exit(f"{row['operation']} has {row['wrong']} wrong values, or was not checked")
    return rows


def is_target(row):
    """Each rank has a GPU. Low-latency cases have fewer tokens."""
    is_latency = "p50_us" in row
    return (row["ranks"] <= row["gpus"] and
            row["experts"] == EXPERTS_PER_RANK * row["ranks"] and
            all(row[key] == value for key, value in TARGET.items()
                if not (is_latency and key == "tokens")))


def format_of(row):
    if row["operation"] == "routing":
        return "-"
    text = row["type"] if row["quantize"] == "none" else "bf16 to " + row["type"]
    return text if row["scales"] == "none" else f"{text} + {row['scales']}"
