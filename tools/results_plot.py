#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws bandwidth over SMs, or over hidden sizes, from what hep_perf and link_ceilings wrote with --json FILE.

usage: results_plot.py [--hidden] PICTURE FILE...

With --hidden: a panel for each operation and type that was measured at several hidden sizes, and in it a
curve for each layout, memory and number of SMs.

Over SMs: two panels, dispatch and combine, in BF16, show the work by which libraries are compared, or without
that the work that has most cases. Ceilings are divided by the share of rows that cross NVLink, so
that they compare with alg GB/s. Libraries of peers.jsonl, if that is among the files, appear where
they did the same work. Needs matplotlib.
"""
import collections
import sys

import matplotlib

import results

matplotlib.use("Agg")
# The same files give the same picture.
matplotlib.rcParams.update({"svg.hashsalt": "hybridep", "svg.fonttype": "none", "font.size": 9})
from matplotlib import pyplot  # noqa: E402  (the settings come first)

SERIES = {("flat", "heap"): ("tab:blue", "-"), ("flat", "any"): ("tab:blue", "--"),
          ("expert-major", "heap"): ("tab:orange", "-"),
          ("expert-major", "any"): ("tab:orange", "--")}
LAYOUT_COLOURS = {"flat": "tab:blue", "expert-major": "tab:orange"}
OPERATIONS = "dispatch", "combine"
WORK = "ranks", "experts", "tokens", "hidden", "top_k", "routing"
MARKERS = "^Ds*vP"


def work(row):
    return tuple(row[key] for key in WORK)


def choose(rows):
    """The cases of one work."""
    by_work = collections.defaultdict(list)
    for row in rows:
        if row["operation"] in OPERATIONS and row["type"] == "bf16":
            by_work[work(row)].append(row)
    if not by_work:
        sys.exit("no dispatch or combine in BF16 was measured")
    return max(by_work.values(), key=lambda cases: (results.is_target(cases[0]), len(cases)))


def curves(rows, key, value, over="sm_budget"):
    """Points by key, sorted; the latest of a point counts."""
    points = collections.defaultdict(dict)
    for row in rows:
        points[key(row)][row[over]] = value(row)
    return {name: sorted(by_size.items()) for name, by_size in points.items()}


def draw_ceilings(axes, cases, copies):
    with_ceiling = [row for row in cases if row.get("ceiling_gbps") and row["remote_gbps"] > 0]
    if not with_ceiling:
        return
    # Ceilings count what crosses NVLink, alg GB/s all rows.
    share = with_ceiling[0]["remote_gbps"] / with_ceiling[0]["alg_gbps"]
    points = curves(with_ceiling, lambda row: None, lambda row: row["ceiling_gbps"] / share)[None]
    axes.plot(*zip(*points), color="grey", linestyle=":", label="ceiling: TMA copies")
    if copies:
        axes.axhline(copies[-1]["gbps"] / share, color="grey", linewidth=0.8,
                     label="copy engines")


def draw_peers(axes, peers):
    names = list(dict.fromkeys(row["library"] for row in peers))
    for row in peers:
        name = row["library"]
        axes.plot(row["sm_budget"], row["alg_gbps"], linestyle="", markerfacecolor="none",
                  marker=MARKERS[names.index(name) % len(MARKERS)],
                  color=LAYOUT_COLOURS[row["layout"]], label=f"{name}, {row['layout']}")


def draw_panel(axes, operation, cases, copies, peers):
    cases = [row for row in cases if row["operation"] == operation]
    draw_ceilings(axes, cases, copies)
    series = curves(cases, lambda row: (row["layout"], row["memory"]), lambda row: row["alg_gbps"])
    for (layout, memory), points in series.items():
        colour, style = SERIES.get((layout, memory), ("tab:green", "-"))
        axes.plot(*zip(*points), color=colour, linestyle=style, marker=".",
                  label=f"{layout}, {memory} memory")
    draw_peers(axes, [row for row in peers if row["operation"] == operation])
    label_panel(axes, operation, "SMs")


def legend_below(figure, panels, columns):
    """Each label once."""
    legend = {}
    for axes in panels:
        legend.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels())})
    figure.legend(legend.values(), legend.keys(), loc="lower center", ncol=columns, fontsize=7)
    return legend


def save(figure, picture):
    figure.savefig(picture, metadata={"Date": None} if picture.endswith(".svg") else None)


def label_panel(axes, title, over):
    axes.set_title(title)
    axes.set_xlabel(over)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def draw_hidden(picture, paths):
    cases = [row for row in results.read(paths, "hep_perf") if row["operation"] in OPERATIONS]
    panels = {}
    for row in cases:
        panels.setdefault((row["operation"], row["type"]), []).append(row)
    panels = {name: rows for name, rows in panels.items()
              if len({row["hidden"] for row in rows}) > 1}
    if not panels:
        sys.exit("no operation was measured at several hidden sizes")
    figure, axes_of = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.8),
                                      sharey=True, squeeze=False)
    for axes, ((operation, type_name), rows) in zip(axes_of[0], panels.items()):
        series = curves(rows, lambda row: (row["layout"], row["memory"], row["sm_budget"]),
                        lambda row: row["alg_gbps"], over="hidden")
        budgets = sorted({sms for _, _, sms in series})
        for (layout, memory, sms), points in series.items():
            colour, style = SERIES.get((layout, memory), ("tab:green", "-"))
            axes.plot(*zip(*points), color=colour, linestyle=style,
                      marker=MARKERS[budgets.index(sms) % len(MARKERS)], markersize=4,
                      label=f"{layout}, {memory} memory, {sms} SMs")
        label_panel(axes, f"{operation}, {type_name}", "elements of a row")
    axes_of[0][0].set_ylabel("alg GB/s")
    legend = legend_below(figure, axes_of[0], columns=3)
    first = cases[0]
    figure.suptitle(f"{first['ranks']} ranks on {first['gpus']} x {first.get('gpu', 'host')}: "
                    f"{first['tokens']} tokens a rank, top-{first['top_k']} of "
                    f"{first['experts']} experts, {first['routing']} routing", fontsize=10,
                    wrap=True)
    figure.tight_layout(rect=(0, 0.05 + 0.03 * (len(legend) // 3), 1, 1))
    save(figure, picture)


def main(picture, paths):
    cases = choose(results.read(paths, "hep_perf"))
    first = cases[0]
    copies = [row for row in results.read(paths, "link_ceilings")
              if row["operation"] == "copy engine ring" and row["gpus"] == first["ranks"]]
    peers = [row for row in results.read(paths, "peer")
             if "alg_gbps" in row and work(row) == work(first)]
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 5.2), sharey=True)
    for axes, operation in zip(panels, OPERATIONS):
        draw_panel(axes, operation, cases, copies, peers)
    panels[0].set_ylabel("alg GB/s")
    legend = legend_below(figure, panels, columns=4)
    figure.suptitle(f"{first['ranks']} x {first.get('gpu', 'host')}: {first['tokens']} tokens a "
                    f"rank, hidden {first['hidden']} in BF16, top-{first['top_k']} of "
                    f"{first['experts']} experts, {first['routing']} routing", fontsize=10)
    figure.tight_layout(rect=(0, 0.05 + 0.03 * (len(legend) // 4), 1, 1))
    save(figure, picture)


if __name__ == "__main__":
    draw = draw_hidden if sys.argv[1:2] == ["--hidden"] else main
    arguments = sys.argv[2 if draw is draw_hidden else 1:]
    if len(arguments) < 2 or arguments[0].startswith("-"):
        sys.exit(__doc__.strip())
    draw(arguments[0], arguments[1:])
