#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the table of README.md from what `hep_perf --json FILE` wrote.

usage: results_table.py FILE
"""
import json
import sys

COLUMNS = ("operation", "layout", "memory", "SMs", "us", "kernel us", "alg GB/s", "NVLink GB/s",
           "ceiling", "host us")


def number(row, key, digits=0):
    return f"{row[key]:.{digits}f}" if key in row else "-"


def shape(row):
    if "tokens" not in row:
        return ""
    return f"{row['tokens']} x {row['hidden']}, top-{row['top_k']}, {row['routing']}"


def is_shown(row):
    """The library's own choice of tuning; of whole layers those in memory of the library."""
    return not row.get("tuning") and not (row["operation"].startswith("layer") and
                                          row["memory"] == "any")


def main(path):
    with open(path) as file:
        results = json.load(file)
    wrong = sum(row["wrong"] for row in results["rows"])
    if any(row["wrong"] != 0 for row in results["rows"]):
        sys.exit(f"{path}: {wrong} wrong values, or rows that were not checked")

    rows = [row for row in results["rows"] if is_shown(row)]
    several = len({shape(row) for row in rows}) > 1
    columns = COLUMNS + (("work",) if several else ())
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = [row["operation"], row["layout"], row["memory"], str(row["sms"] or "-"),
                 number(row, "median_us"), number(row, "kernel_us"), number(row, "alg_gbps"),
                 number(row, "link_gbps"), number(row, "ceiling_gbps"), number(row, "host_us", 1)]
        print("| " + " | ".join(cells + [shape(row)] * several) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    main(sys.argv[1])
