#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws bandwidth over SMs from what `hep_perf --json FILE` wrote, as an SVG on standard output.

usage: results_plot.py FILE... > PICTURE.svg

Two panels, dispatch and combine, in BF16. The work by which libraries are compared is drawn, or if
it is not there the one that has most rows, with the library's own tuning; of several runs the later
ones win. The ceilings are those of the same files, over the
share of rows that cross NVLink. Libraries of results/peers.json appear if they did the same work.
"""
import collections
import html
import json
import os
import sys

import results

PANEL_WIDTH, PANEL_HEIGHT = 430, 320
LEFT, TOP, GAP, LEGEND_HEIGHT = 64, 76, 40, 176
WIDTH = LEFT + 2 * PANEL_WIDTH + GAP + 24
HEIGHT = TOP + PANEL_HEIGHT + 52 + LEGEND_HEIGHT

# Legible on their own ground, light or dark. Plain rules, which every viewer knows.
COLOURS = """
  .ground { fill: %(ground)s; }
  text { fill: %(text)s; }
  .muted { fill: %(muted)s; }
  .grid { stroke: %(grid)s; }
  .axis { stroke: %(muted)s; }
  .ceiling { stroke: %(ceiling)s; }
  .flat { stroke: %(flat)s; } .flat-dot { fill: %(flat)s; }
  .expert { stroke: %(expert)s; } .expert-dot { fill: %(expert)s; }
  .peer { fill: %(ground)s; stroke: %(muted)s; }
  .peer-flat { stroke: %(flat)s; } .peer-expert { stroke: %(expert)s; }
"""
LIGHT = {"ground": "#ffffff", "text": "#1f2328", "muted": "#59636e", "grid": "#e4e8ec",
         "ceiling": "#8a939d", "flat": "#0b62c4", "expert": "#c2500a"}
DARK = {"ground": "#0d1117", "text": "#e6edf3", "muted": "#9198a1", "grid": "#262c36",
        "ceiling": "#6e7681", "flat": "#58a6ff", "expert": "#ff9a4d"}
STYLE = (COLOURS % LIGHT + "@media (prefers-color-scheme: dark) {" + COLOURS % DARK + """}
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
  text.muted { font-size: 12px; }
  text.title { font-size: 15px; font-weight: 600; }
  .grid, .axis { stroke-width: 1; }
  .series { fill: none; stroke-width: 2.25; stroke-linejoin: round; }
  .any { stroke-dasharray: 6 4; }
  .ceiling { fill: none; stroke-width: 1.5; stroke-dasharray: 2 3; }
  .baseline { stroke-dasharray: 12 3; }
  .peer { stroke-width: 1.6; }
""")

SERIES = [("flat", "heap"), ("flat", "any"), ("expert-major", "heap"), ("expert-major", "any")]
MEMORY_NAMES = {"heap": "hepMemAlloc memory", "any": "any memory"}
OPERATIONS = "dispatch", "combine"
BASELINE = "nccl all-to-all"


def layout_class(layout):
    return "flat" if layout == "flat" else "expert"


class Results:
    """The rows of one shape, and its ceilings as GB/s of all rows."""

    def __init__(self, paths):
        by_shape = collections.defaultdict(list)
        for path in paths:
            for row in results.read_rows(path):
                if "alg_gbps" in row and row["type"] == "bf16" and not row["tuning"]:
                    by_shape[tuple(results.shape_of(row).values())].append(row)
        if not by_shape:
            sys.exit("no rows in BF16 with bandwidths in " + ", ".join(paths))
        target = tuple(results.TARGET.values())
        shape = max(by_shape, key=lambda shape: (shape == target, len(by_shape[shape])))
        self.shape = dict(zip(results.TARGET, shape))
        self.points = collections.defaultdict(dict)  # (operation, layout, memory): SMs: GB/s
        self.ceilings = {}  # SMs: GB/s; 0: copy engines
        self.baseline = None
        for row in by_shape[shape]:
            if row["operation"] == BASELINE:
                self.baseline = row["alg_gbps"]
            if row["operation"] not in OPERATIONS:
                continue
            key = row["operation"], row["layout"], row["memory"]
            # The budget is the user's; an operation may leave some of it unused.
            self.points[key][row["sm_budget"]] = row["alg_gbps"]
            share = row["remote_flat_rows_per_rank"] / row["flat_rows_per_rank"]
            self.read_ceilings(row["run"]["ceilings"]["rows"], share)
            self.machine = row["run"]["machine"]

    def read_ceilings(self, rows, share):
        if share == 0:
            return
        best = collections.defaultdict(float)
        for row in rows:
            if row["name"] != "local copy":
                best[row["sms"]] = max(best[row["sms"]], row["gbps"] / share)
        self.ceilings.update(best)


class Panel:
    def __init__(self, left, title, sms_end, speed_end):
        self.left, self.title = left, title
        self.sms_end, self.speed_end = sms_end, speed_end

    def x(self, sms):
        return self.left + PANEL_WIDTH * sms / self.sms_end

    def y(self, speed):
        return TOP + PANEL_HEIGHT * (1 - speed / self.speed_end)

    def frame(self, with_label):
        parts = [text(self.left, TOP - 14, self.title, "title")]
        for speed in range(0, self.speed_end + 1, 100):
            parts.append(line(self.left, self.y(speed), self.left + PANEL_WIDTH, self.y(speed),
                              "axis" if speed == 0 else "grid"))
            parts.append(text(self.left - 8, self.y(speed) + 4, speed, "muted", "end"))
        for sms in range(0, self.sms_end + 1, 4 if self.sms_end <= 40 else 8):
            parts.append(line(self.x(sms), self.y(0), self.x(sms), self.y(0) + 5, "axis"))
            parts.append(text(self.x(sms), self.y(0) + 20, sms, "muted", "middle"))
        parts.append(text(self.left + PANEL_WIDTH / 2, self.y(0) + 40, "SMs", "muted", "middle"))
        if with_label:
            middle = TOP + PANEL_HEIGHT / 2
            parts.append(f'<text class="muted" text-anchor="middle" transform="translate('
                         f'{self.left - 46} {middle}) rotate(-90)">GB/s of all rows received (alg)'
                         '</text>')
        return parts

    def curve(self, points, css):
        pairs = [f"{self.x(sms):.1f},{self.y(speed):.1f}" for sms, speed in sorted(points.items())]
        return f'<polyline class="{css}" points="{" ".join(pairs)}"/>'

    def level(self, speed, css):
        return line(self.left, self.y(speed), self.left + PANEL_WIDTH, self.y(speed), css)


def text(x, y, content, css="", anchor="start"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">'
            f'{html.escape(str(content))}</text>')


def line(x1, y1, x2, y2, css):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def marker(kind, x, y, css):
    if kind == 0:
        points = [(0, -6), (5.5, 4.5), (-5.5, 4.5)]
    elif kind == 1:
        points = [(0, -6), (6, 0), (0, 6), (-6, 0)]
    elif kind == 2:
        points = [(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)]
    elif kind == 3:
        points = [(0, 6), (5.5, -4.5), (-5.5, -4.5)]
    else:
        points = [(-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2),
                  (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2)]
    pairs = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points)
    return f'<polygon class="{css}" points="{pairs}"/>'


def read_peers(shape):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "peers.json")
    with open(path) as file:
        peers = json.load(file)
    return peers["rows"] if peers["shape"] == shape else []


def draw_panel(panel, operation, measured, peers, libraries, with_label):
    parts = panel.frame(with_label)
    by_sms = {sms: speed for sms, speed in measured.ceilings.items() if sms > 0}
    if by_sms:
        parts.append(panel.curve(by_sms, "ceiling"))
    if 0 in measured.ceilings:
        copies = measured.ceilings[0]
        parts.append(panel.level(copies, "ceiling"))
        parts.append(text(panel.left + PANEL_WIDTH - 4, panel.y(copies) - 5,
                          f"copy engines {copies:.0f}", "muted", "end"))
    if operation == "dispatch" and measured.baseline:
        parts.append(panel.level(measured.baseline, "ceiling baseline"))
    for layout, memory in SERIES:
        points = measured.points.get((operation, layout, memory))
        if not points:
            continue
        css = layout_class(layout)
        parts.append(panel.curve(points, f"series {css} {memory}"))
        for sms, speed in points.items():
            parts.append(f'<circle class="{css}-dot" cx="{panel.x(sms):.1f}" '
                         f'cy="{panel.y(speed):.1f}" r="3"/>')
    for peer in peers:
        if peer["operation"] == operation:
            css = "peer peer-" + layout_class(peer["layout"])
            parts.append(marker(libraries.index(peer["library"]), panel.x(peer["sms"]),
                                panel.y(peer["api_gbps"]), css))
    return parts


def draw_legend(measured, libraries):
    top, row_height = TOP + PANEL_HEIGHT + 72, 22
    columns = [LEFT, LEFT + 300, LEFT + 590]
    parts = []
    for i, (layout, memory) in enumerate(SERIES):
        y = top + i * row_height
        css = layout_class(layout)
        parts.append(line(columns[0], y, columns[0] + 34, y, f"series {css} {memory}"))
        parts.append(text(columns[0] + 44, y + 4, f"{layout}, {MEMORY_NAMES[memory]}"))
    y = top
    if measured.ceilings:
        parts.append(line(columns[1], y, columns[1] + 34, y, "ceiling"))
        parts.append(text(columns[1] + 44, y + 4, "ceiling: TMA copies, this run"))
        parts.append(text(columns[1] + 44, y + 22, "over the share of rows on NVLink", "muted"))
    if measured.baseline:
        y = top + 2 * row_height
        parts.append(line(columns[1], y, columns[1] + 34, y, "ceiling baseline"))
        parts.append(text(columns[1] + 44, y + 4, f"NCCL all-to-all: {measured.baseline:.0f}"))
        parts.append(text(columns[1] + 44, y + 22, "of the same rows, packed before", "muted"))
    for i, library in enumerate(libraries):
        y = top + i * row_height
        parts.append(marker(i, columns[2] + 17, y, "peer"))
        parts.append(text(columns[2] + 44, y + 4, library))
    if libraries:
        parts.append(text(columns[2] + 44, top + len(libraries) * row_height + 4,
                          "blue: flat; orange: expert-major; whole call", "muted"))
    return parts


def main(paths):
    measured = Results(paths)
    shape = measured.shape
    peers = read_peers(shape)
    libraries = list(dict.fromkeys(peer["library"] for peer in peers))
    all_sms = [sms for points in measured.points.values() for sms in points]
    speeds = [speed for points in measured.points.values() for speed in points.values()]
    speeds += list(measured.ceilings.values()) + [peer["api_gbps"] for peer in peers]
    sms_end = -(-max(all_sms + [peer["sms"] for peer in peers] + [4]) // 4) * 4
    speed_end = -(-int(max(speeds) + 20) // 100) * 100
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="Bandwidth over SMs">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" class="ground"/>',
        text(LEFT, 26, f"{shape['ranks']} x {measured.machine['gpu'] or 'host'}: {shape['tokens']} "
             f"tokens a rank, hidden {shape['hidden']} in BF16, top-{shape['top_k']} of "
             f"{shape['experts']} experts, {shape['routing']} routing", "muted"),
    ]
    for i, operation in enumerate(OPERATIONS):
        panel = Panel(LEFT + i * (PANEL_WIDTH + GAP), operation.capitalize(), sms_end, speed_end)
        parts += draw_panel(panel, operation, measured, peers, libraries, i == 0)
    parts += draw_legend(measured, libraries)
    print("\n".join(parts + ["</svg>"]))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    main(sys.argv[1:])
