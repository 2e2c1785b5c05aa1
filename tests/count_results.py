#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts what runs of `meson test` in build directories did: every case of every program that reports
as GoogleTest does, and every other test as one. Says once more, where a log that is cut keeps it, what
failed and why. Ends with `N passed, N failed, N skipped`; fails if anything failed or nothing passed."""

import json
import pathlib
import sys
import xml.etree.ElementTree

LINES_OF_OUTPUT = 30  # of a test that failed without a word of GoogleTest


def failures_of(case):
    return case.findall("failure") + case.findall("error")


def count_cases(report):
    """The outcomes of a GoogleTest report, and what the failed cases say."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    said = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        if case.get("status") == "notrun":
            continue
        if failures_of(case):
            counts["failed"] += 1
            said.append("{}.{}".format(case.get("classname"), case.get("name")))
            said += [(failure.get("message") or failure.text or "") for failure in failures_of(case)]
        elif case.find("skipped") is not None or case.get("result") == "skipped":
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts, said


def end_of_output(test):
    lines = (test.get("stdout") or "").splitlines() + (test.get("stderr") or "").splitlines()
    return lines[-LINES_OF_OUTPUT:]


def count_test(test, report):
    """The outcomes of one test of Meson, and what it says if it failed. A program that crashed or ran
    out of time has failed even if no case of its report has."""
    outcome = {"OK": "passed", "SKIP": "skipped"}.get(test["result"], "failed")
    counts, said = count_cases(report) if report.exists() else ({outcome: 1}, [])
    if outcome == "failed":
        if not said:
            counts["failed"] = 1
            said = end_of_output(test)
        said.insert(0, "{} ended with {}:".format(test["name"], test["result"]))
    return counts, said


def main():
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    for build in map(pathlib.Path, sys.argv[1:]):
        for line in (build / "meson-logs" / "testlog.json").read_text().splitlines():
            test = json.loads(line)
            name = test["name"].split(" / ")[-1]
            counts, said = count_test(test, build / (name + ".xml"))
            for outcome, count in counts.items():
                totals[outcome] += count
            for text in said:
                print("{}: {}".format(build.name, text))
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**totals))
    return 1 if totals["failed"] > 0 or totals["passed"] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
