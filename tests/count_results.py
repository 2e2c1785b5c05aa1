#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts what runs of `meson test` in build directories did: every case of every GoogleTest
program, and every other test as one. Ends with `N passed, N failed, N skipped`; fails if anything
failed or nothing passed."""

import json
import pathlib
import sys
import xml.etree.ElementTree


def count_cases(report):
    """The outcomes of a GoogleTest report."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        if case.get("status") == "notrun":
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        elif case.find("skipped") is not None or case.get("result") == "skipped":
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


def count_test(result, report):
    """The outcomes of one test of Meson. A program that crashed or ran out of time has failed even
    if no case of its report has."""
    outcome = {"OK": "passed", "SKIP": "skipped"}.get(result, "failed")
    if not report.exists():
        return {outcome: 1}
    counts = count_cases(report)
    if outcome == "failed" and counts["failed"] == 0:
        counts["failed"] = 1
    return counts


def main():
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    for build in map(pathlib.Path, sys.argv[1:]):
        for line in (build / "meson-logs" / "testlog.json").read_text().splitlines():
            test = json.loads(line)
            name = test["name"].split(" / ")[-1]
            counts = count_test(test["result"], build / (name + ".xml"))
            for outcome, count in counts.items():
                totals[outcome] += count
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**totals))
    return 1 if totals["failed"] > 0 or totals["passed"] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
