#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the table of README.md from what `hep_perf --json FILE` wrote.

usage: results_table.py FILE [--low-latency] [--all]

It shows BF16 and FP8 E4M3 at the work by which libraries are compared, with 8, 16 and 24 SMs; with
--all everything that was measured with the library's own tuning. With --low-latency it shows what
`hep_perf --low-latency` measured instead: whole operations on 1, 128 and 512 tokens, with --all halves and
other batches, too; nothing if that is not in the file. Of rows for the same case the latest is shown, and
of budgets of which an operation uses the same SMs the smallest.
"""
import sys

import results

COLUMNS = ("operation", "layout", "memory", "format", "SMs", "us", "kernel us", "alg GB/s",
           "NVLink GB/s", "ceiling", "% of it", "host us")
LATENCY_COLUMNS = ("low-latency operation", "layout", "memory", "format", "tokens", "SMs", "p50 us",
                   "p99", "max", "graph: p50 us", "p99", "max")
SHOWN_TYPES = "bf16", "fp8-e4m3"
SHOWN_BUDGETS = 0, 8, 16, 24  # 0: not the library, but a baseline
SHOWN_LATENCIES = "dispatch", "combine"  # not their halves
SHOWN_BATCHES = 1, 128, 512


def number(row, key, digits=0):
    return f"{row[key]:.{digits}f}" if key in row else "-"


def share_of_ceiling(row):
    if "ceiling_gbps" not in row:
        return "-"
    return f"{100 * row['link_gbps'] / row['ceiling_gbps']:.0f}"


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


def print_table(columns, lines):
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for cells in lines:
        print("| " + " | ".join(cells) + " |")


def tell_of_nothing(with_all):
    print("nothing of this kind was measured" if with_all else
          "nothing was measured at the work by which libraries are compared: see --all",
          file=sys.stderr)


def is_latency_target(row):
    return (results.shape_of(row) == {**results.TARGET, "tokens": row["tokens"]} and
            row["operation"] in SHOWN_LATENCIES and row["tokens"] in SHOWN_BATCHES and
            row["type"] in SHOWN_TYPES and row["idle_ranks"] == 0)


def print_latencies(path, with_all):
    """A line for each case, called, replayed, and in a row; the latest of each counts."""
    by_case = {}
    for row in results.read_rows(path, "low_latency"):
        if with_all or is_latency_target(row):
            keys = "operation", "layout", "memory", "alignment", "idle_ranks", "sms"
            key = work(row), format_of(row), *(row[key] for key in keys)
            by_case.setdefault(key, {})[row["launch"]] = row
    if not by_case:
        tell_of_nothing(with_all)
        return
    with_chains = any("chain" in launches for launches in by_case.values())
    columns = LATENCY_COLUMNS + ("chain: p50 us",) * with_chains + ("work",) * with_all
    lines = []
    for launches in by_case.values():
        row = next(iter(launches.values()))
        times = [number(launches.get(launch, {}), key, 1) for launch in ("eager", "graph")
                 for key in ("p50_us", "p99_us", "max_us")]
        times += [number(launches.get("chain", {}), "p50_us", 1)] * with_chains
        lines.append([row["operation"], row["layout"], row["memory"], format_of(row),
                      str(row["tokens"]), str(row["sms"] or "-"), *times] +
                     [f"{work(row)}, {row['idle_ranks']} idle"] * with_all)
    print_table(columns, lines)


def print_bandwidths(path, with_all):
    rows = [row for row in results.read_rows(path) if not row["tuning"]]
    rows = chosen([row for row in rows if with_all or is_target(row)])
    if not rows:
        tell_of_nothing(with_all)
    columns = COLUMNS + (("work",) if with_all else ())
    lines = []
    for row in rows:
        cells = [row["operation"], row["layout"], row["memory"], format_of(row),
                 str(row["sms"] or "-"), number(row, "median_us"), number(row, "kernel_us"),
                 number(row, "alg_gbps"), number(row, "link_gbps"), number(row, "ceiling_gbps"),
                 share_of_ceiling(row), number(row, "host_us", 1)]
        lines.append(cells + [work(row)] * with_all)
    print_table(columns, lines)


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    flags = set(sys.argv[1:]) - set(paths)
    if len(paths) != 1 or not flags <= {"--all", "--low-latency"}:
        sys.exit(__doc__.strip())
    show = print_latencies if "--low-latency" in flags else print_bandwidths
    show(paths[0], "--all" in flags)
