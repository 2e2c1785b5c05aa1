#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the test cases of modules of this folder and reports each as a program of GoogleTest does.

usage: run.py MODULE... [--gtest_output=xml:FILE] [CLASS.CASE...]
"""

import pathlib
import sys
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).parent))


class Report(unittest.TextTestResult):
    """Keeps an element of the report for each case."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.report = xml.etree.ElementTree.Element("testsuites")

    def add(self, test, outcome="", text=""):
        name = getattr(test, "_testMethodName", str(test))
        case = xml.etree.ElementTree.SubElement(
            self.report, "testcase", classname=type(test).__name__, name=name, status="run"
        )
        if outcome:
            xml.etree.ElementTree.SubElement(case, outcome, message=text)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.add(test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.add(test, "skipped", reason)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.add(test, "failure", self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self.add(test, "error", self.errors[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.add(test, "failure", str(subtest) + "".join(map(str, err)))


def skipped(name, reason):
    """A case that stands for a module which cannot be loaded here."""

    def skip():
        raise unittest.SkipTest(f"{name}: {reason}")

    return unittest.FunctionTestCase(skip, description=name)


def load(name):
    try:
        return unittest.defaultTestLoader.loadTestsFromName(name)
    except unittest.SkipTest as reason:
        return skipped(name, reason)


def main(arguments):
    option = "--gtest_output=xml:"
    reports = [word[len(option) :] for word in arguments if word.startswith(option)]
    names = [word for word in arguments if not word.startswith("--")]
    suite = unittest.TestSuite(map(load, names))
    result = unittest.TextTestRunner(verbosity=2, resultclass=Report).run(suite)
    for path in reports:
        xml.etree.ElementTree.ElementTree(result.report).write(path)
    if result.testsRun == 0:
        print("there is no test", file=sys.stderr)
    return 0 if result.wasSuccessful() and result.testsRun > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
