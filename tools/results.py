# SPDX-License-Identifier: Apache-2.0
"""Reads what `hep_perf --json FILE` wrote."""
import json
import sys

# The work by which libraries are compared.
TARGET = {"ranks": 4, "tokens": 4096, "hidden": 7168, "top_k": 8, "experts": 32,
          "routing": "uniform"}
# What files lack that are older than these keys.
DEFAULTS = {"type": "bf16", "scales": "none", "quantize": "none", "tuning": {}}


def read_runs(path):
    """A list of runs; a file of the first form is one run."""
    with open(path) as file:
        content = json.load(file)
    return content if isinstance(content, list) else [content]


def read_rows(path, kind="rows"):
    """All rows of a kind in order, each with its run's config, and its run as `run`. All must be right."""
    rows = [{**DEFAULTS, **run["config"], **row, "run": run}
            for run in read_runs(path) for row in run.get(kind, [])]
    for row in rows:
        if row["wrong"] != 0:
            sys.exit(f"{path}: {row['operation']} has {row['wrong']} wrong values, or was not "
                     "checked")
    return rows


def shape_of(row):
    return {key: row[key] for key in TARGET}
