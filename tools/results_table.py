#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the table of README.md from what `hep_perf --json FILE` wrote.

usage: results_table.py FILE
"""
import json
import sys

COLUMNS = "operation", "layout", "memory", "weights", "SMs", "us", "alg GB/s", "NVLink GB/s", "ceiling"


def number(row, key):
    return f"{row[key]:.0f}" if key in row else "-"


def main(path):
    with open(path) as file:
        results = json.load(file)
    wrong = sum(row["wrong"] for row in results["rows"])
    if any(row["wrong"] != 0 for row in results["rows"]):
        sys.exit(f"{path}: {wrong} wrong values, or rows that were not checked")

    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in results["rows"]:
        cells = [row["operation"], row["layout"], row["memory"], row["weights"], str(row["sms"]),
                 number(row, "median_us"), number(row, "alg_gbps"), number(row, "link_gbps"),
                 number(row, "ceiling_gbps")]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    main(sys.argv[1])
