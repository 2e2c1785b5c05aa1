#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the table of README.md from what `hep_perf --json FILE` wrote.

usage: results_table.py FILE [--all]

It shows BF16 and FP8 E4M3 at the work by which libraries are compared, with 8, 16 and 24 SMs; with
--all everything that was measured with the library's own tuning. Of rows for the same case the
latest is shown, and of budgets of which an operation uses the same SMs the smallest.
"""
import sys

import results

COLUMNS = ("operation", "layout", "memory", "format", "SMs", "us", "kernel us", "alg GB/s",
           "NVLink GB/s", "ceiling", "host us")
SHOWN_TYPES = "bf16", "fp8-e4m3"
SHOWN_BUDGETS = 0, 8, 16, 24  # 0: not the library, but a baseline


def number(row, key, digits=0):
    return f"{row[key]:.{digits}f}" if key in row else "-"


def work(row):
    return (f"{row['ranks']} ranks, {row['tokens']} x {row['hidden']}, "
            f"top-{row['top_k']} of {row['experts']}, {row['routing']}")


def format_of(row):
    if row["operation"] == "routing":
        return "-"
    text = row["type"] if row["quantize"] == "none" else "bf16 to " + row["type"]
    return text if row["scales"] == "none" else f"{text} + {row['scales']}"


def is_target(row):
    """Of whole layers those in memory of the library."""
    return (results.shape_of(row) == results.TARGET and row["type"] in SHOWN_TYPES and
            row["sm_budget"] in SHOWN_BUDGETS and
            not (row["operation"].startswith("layer") and row["memory"] == "any"))


def case(row, sms_key):
    keys = "operation", "layout", "memory", "weights", "alignment", sms_key
    return work(row), format_of(row), *(row[key] for key in keys)


def chosen(rows):
    latest = {case(row, "sm_budget"): row for row in rows}
    smallest = {}
    for row in sorted(latest.values(), key=lambda row: row["sm_budget"]):
        smallest.setdefault(case(row, "sms"), row)
    return [row for row in latest.values() if smallest[case(row, "sms")] is row]


def main(path, with_all):
    rows = [row for row in results.read_rows(path) if not row["tuning"]]
    rows = chosen([row for row in rows if with_all or is_target(row)])
    columns = COLUMNS + (("work",) if with_all else ())
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = [row["operation"], row["layout"], row["memory"], format_of(row),
                 str(row["sms"] or "-"), number(row, "median_us"), number(row, "kernel_us"),
                 number(row, "alg_gbps"), number(row, "link_gbps"), number(row, "ceiling_gbps"),
                 number(row, "host_us", 1)]
        print("| " + " | ".join(cells + [work(row)] * with_all) + " |")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--all"]
    if len(arguments) != 1:
        sys.exit(__doc__.strip())
    main(arguments[0], "--all" in sys.argv)
