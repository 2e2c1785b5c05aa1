#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints tables of what the benchmarks wrote with --json FILE.

usage: results_table.py perf|hidden|latency|ceilings|chosen|routing FILE... [--all]
       results_table.py --update PAGE     rewrites the tables of a page
       results_table.py --check PAGE      fails if they are not what the files give

perf shows the operations at the work by which libraries are compared, with 8, 16 and 24 SMs;
hidden shows alg GB/s over usual hidden sizes, a line for each commit, operation and number of SMs;
latency shows whole operations on 1, 128 and 512 tokens; --all shows everything; chosen shows what
the library chose (--sms 0) beside a sweep (--exact) in the same file; routing compares the routing
updates of several commits. Of cases that were measured again the latest is shown. A table of a
page stands between the lines
<!-- results_table.py ARGUMENTS --> and <!-- end -->; its files are relative to the page.
"""
import os
import re
import sys

import results

PERF_COLUMNS = ("operation", "layout", "memory", "format", "SMs", "us", "alg GB/s", "remote GB/s",
                "ceiling", "% of it", "host us")
LATENCY_COLUMNS = ("low-latency operation", "layout", "memory", "format", "tokens", "SMs",
                   "p50 us", "p99", "max", "graph: p50 us", "p99", "max", "chain: p50 us")
HIDDEN_COLUMNS = "commit", "operation", "layout", "memory", "format", "SMs"
CEILING_COLUMNS = "copies", "GPUs", "SMs", "GB/s"
CHOSEN_COLUMNS = ("operation", "layout", "alignment", "format", "tokens", "hidden", "top-k",
                  "SMs chosen", "us", "SMs of the best", "us", "fewest SMs within 3 %", "us")
SHOWN_OPERATIONS = "routing", "dispatch", "combine", "layer"
SHOWN_TYPES = "bf16", "fp8-e4m3"
SHOWN_BUDGETS = 8, 16, 24
SHOWN_HIDDEN = 1024, 2048, 2880, 4096, 5120, 6144, 7168, 8192, 10240, 16384
SHOWN_LATENCIES = "dispatch", "combine"  # not their halves
SHOWN_BATCHES = 1, 128, 512
MARKED = re.compile(r"(<!-- results_table\.py (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def number(row, key, digits=0):
    return f"{row[key]:.{digits}f}" if key in row else "-"


def work(row):
    text = (f"{row['ranks']} ranks, {row['tokens']} x {row['hidden']}, top-{row['top_k']} of "
            f"{row['experts']}, {row['routing']}, alignment {row['alignment']}")
    return text + (f", {row['idle_ranks']} idle" if row["idle_ranks"] else "")


def case(row, *keys):
    return work(row), results.format_of(row), *(row[key] for key in keys)


def table(columns, lines):
    rows = ["| " + " | ".join(cells) + " |" for cells in [columns, *lines]]
    return "\n".join([rows[0], "|" + "---|" * len(columns), *rows[1:]])


def is_shown_perf(row):
    """Of layers those in memory of the library."""
    return (results.is_target(row) and row["type"] in SHOWN_TYPES and
            row["operation"] in SHOWN_OPERATIONS and row["sm_budget"] in SHOWN_BUDGETS and
            not (row["operation"] == "layer" and row["memory"] == "any"))


def share_of_ceiling(row):
    if "ceiling_gbps" not in row:
        return "-"
    moved = row["alg_gbps" if row["backend"] == "host" else "remote_gbps"]
    return f"{100 * moved / row['ceiling_gbps']:.0f}"


def perf(paths, with_all):
    keys = "operation", "layout", "memory", "weights", "sm_budget"
    latest = {case(row, *keys): row for row in results.read(paths, "hep_perf")
              if with_all or is_shown_perf(row)}
    lines = []
    for row in latest.values():
        cells = [row["operation"], row["layout"], row["memory"], results.format_of(row),
                 str(row["sms"] or "-"), number(row, "median_us"), number(row, "alg_gbps"),
                 number(row, "remote_gbps"), number(row, "ceiling_gbps"), share_of_ceiling(row),
                 number(row, "host_us", 1)]
        lines.append(cells + [work(row)] * with_all)
    return table(PERF_COLUMNS + ("work",) * with_all, lines)


def hidden(paths, with_all):
    """A line for each series, a column for each hidden size."""
    series = {}
    sizes = set()
    for row in results.read(paths, "hep_perf"):
        if "alg_gbps" not in row or not (with_all or row["hidden"] in SHOWN_HIDDEN):
            continue
        name = (row["commit"], row["operation"], row["layout"], row["memory"],
                results.format_of(row), str(row["sm_budget"]))
        series.setdefault(name, {})[row["hidden"]] = row
        sizes.add(row["hidden"])
    lines = [[*name, *(number(by_size.get(size, {}), "alg_gbps") for size in sorted(sizes))]
             for name, by_size in series.items()]
    return table(HIDDEN_COLUMNS + tuple(map(str, sorted(sizes))), lines)


def is_shown_latency(row):
    return (results.is_target(row) and row["operation"] in SHOWN_LATENCIES and
            row["tokens"] in SHOWN_BATCHES and row["type"] in SHOWN_TYPES and
            row["idle_ranks"] == 0)


def latency(paths, with_all):
    """A line for each case: called, replayed, and in a row."""
    by_case = {}
    for row in results.read(paths, "hep_latency"):
        if with_all or is_shown_latency(row):
            key = case(row, "operation", "layout", "memory", "sms")
            by_case.setdefault(key, {})[row["launch"]] = row
    lines = []
    for launches in by_case.values():
        row = launches["eager"]
        times = [number(launches.get(launch, {}), key, 1) for launch in ("eager", "graph")
                 for key in ("p50_us", "p99_us", "max_us")]
        lines.append([row["operation"], row["layout"], row["memory"], results.format_of(row),
                      str(row["tokens"]), str(row["sms"] or "-"), *times,
                      number(launches.get("chain", {}), "p50_us", 1)] + [work(row)] * with_all)
    return table(LATENCY_COLUMNS + ("work",) * with_all, lines)


def ceilings(paths, _):
    latest = {(row["operation"], row["gpus"], row["sms"]): row
              for row in results.read(paths, "link_ceilings")}
    return table(CEILING_COLUMNS, [[row["operation"], str(row["gpus"]), str(row["sms"] or "-"),
                                    number(row, "gbps")] for row in latest.values()])


def chosen(paths, _):
    """The library's choice beside the sweep of the same work."""
    by_case = {}
    for row in results.read(paths, "hep_perf"):
        if row["operation"] in ("dispatch", "combine"):
            budgets = by_case.setdefault(case(row, "operation", "layout", "memory"), {})
            budgets[row["sm_budget"]] = row
    lines = []
    for budgets in by_case.values():
        choice = budgets.pop(0, None)
        if choice is None or not budgets:
            continue
        best = min(budgets.values(), key=lambda row: row["median_us"])
        near = [sms for sms, row in budgets.items() if row["median_us"] <= 1.03 * best["median_us"]]
        shape = [str(choice[key]) for key in ("tokens", "hidden", "top_k")]
        cells = [choice["operation"], choice["layout"], str(choice["alignment"]),
                 results.format_of(choice), *shape]
        for row in choice, best, budgets[min(near)]:
            cells += [str(row["sms"]), number(row, "median_us", 1)]
        lines.append(cells)
    return table(CHOSEN_COLUMNS, lines)


def routing(paths, _):
    """A column for each commit."""
    rows = [row for row in results.read(paths, "hep_perf") if row["operation"] == "routing"]
    commits = list(dict.fromkeys(row["commit"] for row in rows))
    by_case = {}
    for row in rows:
        key = tuple(str(row[key]) for key in ("ranks", "tokens", "top_k", "experts", "sms"))
        by_case.setdefault(key, {})[row["commit"]] = number(row, "median_us", 1)
    return table(("ranks", "tokens", "top-k", "experts", "SMs", *(f"{c}: us" for c in commits)),
                 [[*key, *(times.get(c, "-") for c in commits)]
                  for key, times in by_case.items()])


TABLES = {"perf": perf, "hidden": hidden, "latency": latency, "ceilings": ceilings,
          "chosen": chosen, "routing": routing}


def make(arguments, folder=""):
    kind, *paths = [argument for argument in arguments if argument != "--all"]
    if kind not in TABLES or not paths:
        sys.exit(__doc__.strip())
    return TABLES[kind]([os.path.join(folder, path) for path in paths], "--all" in arguments)


def read_page(path):
    """A page as it is, and as it should be."""
    with open(path) as file:
        page = file.read()
    folder = os.path.dirname(path)
    return page, MARKED.sub(
        lambda mark: f"{mark[1]}\n{make(mark[2].split(), folder)}\n\n{mark[3]}", page)


def main(arguments):
    if len(arguments) == 2 and arguments[0] in ("--update", "--check"):
        page, expected = read_page(arguments[1])
        if "<!-- results_table.py" not in page:
            sys.exit(f"{arguments[1]} has no table")
        if arguments[0] == "--update":
            with open(arguments[1], "w") as file:
                file.write(expected)
        elif page != expected:
            sys.exit(f"the tables of {arguments[1]} are not what the files give: run "
                     f"tools/results_table.py --update {arguments[1]}")
    elif arguments and not arguments[0].startswith("-"):
        print(make(arguments))
    else:
        sys.exit(__doc__.strip())


if __name__ == "__main__":
    main(sys.argv[1:])
