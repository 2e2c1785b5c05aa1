#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clang finds no use of guarded state without its mutex in the host sources of the library.

usage: thread_safety.py SOURCE_ROOT BUILD_FOLDER
"""
import concurrent.futures
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
CHECK = ["-fsyntax-only", "-Wno-everything", "-Wthread-safety", "-Werror=thread-safety"]

# What clang must refuse, so that a check that checks nothing is noticed.
WITHOUT_LOCK = """
#include "base/thread_annotations.h"
struct Counter {
  void add() { ++count; }
  hep::Mutex mutex;
  int count HEP_GUARDED_BY(mutex) = 0;
};
"""
WITH_LOCK = WITHOUT_LOCK.replace("++count", "const hep::Lock lock(mutex); ++count")


def flags_of(entry):
    """The flags of a compile command that decide what the source means."""
    flags, words = [], shlex.split(entry["command"])
    for word, following in zip(words, words[1:] + [""]):
        if re.match(r"-(D|I|std=|isystem.)", word):
            flags.append(word)
        elif word in ("-isystem", "-include"):
            flags += [word, following]
    return flags


def check(clang, folder, flags, source):
    done = subprocess.run([clang, *flags, *CHECK, source], cwd=folder, stderr=subprocess.PIPE,
                          text=True, check=False)
    return done.returncode, done.stderr


def check_itself(clang, src):
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch) / "counter.cc"
        for text, expected in ((WITH_LOCK, ""), (WITHOUT_LOCK, "requires holding mutex")):
            source.write_text(text, encoding="utf-8")
            _, found = check(clang, scratch, ["-std=c++17", "-I", str(src)], str(source))
            assert (expected in found) if expected else not found, found


def main():
    root, build = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    clang = shutil.which("clang++")
    if clang is None:
        print("clang++ is not installed, which alone checks that locks are held")
        sys.exit(SKIPPED)
    src = root / "src"
    check_itself(clang, src)
    entries = {}
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        path = (pathlib.Path(entry["directory"]) / entry["file"]).resolve()
        if path.suffix == ".cc" and src in path.parents:
            entries[path] = entry
    assert len(entries) > 1, f"{build}/compile_commands.json names no sources of {src}"
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(
            lambda item: check(clang, item[1]["directory"], flags_of(item[1]), str(item[0])),
            sorted(entries.items())))
    failed = [text for code, text in results if code != 0]
    print("\n".join(failed), end="")
    print(f"{len(results)} sources, {len(failed)} with errors")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
