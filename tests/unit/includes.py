#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A file of src/ includes its own floor and lower ones, never a higher one.

usage: includes.py SRC
"""
import pathlib
import re
import sys
import tempfile

# The first folder of a path says the floor; "" stands for the files of src/ itself.
FLOORS = {
    "base": 1,
    "protocol": 2,
    "config": 3, "net": 3, "gpu": 3,
    "memory": 4, "bootstrap": 4, "peers": 4, "network": 4,
    "backend": 5,
    "comm": 6,
    "": 7,
    "bindings": 8,
}

# Compiled by every compiler, with a GPU or without.
WITHOUT_CUDA = ("base", "protocol", "config", "net")

SOURCES = (".h", ".cc", ".cu", ".cuh", ".inc")
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)
CUDA_HEADER = re.compile(r"^(cuda|cooperative_groups|nv/|cub/|curand)")


def top_folder(path):
    return path.split("/")[0] if "/" in path else ""


def folder(path):
    return path.rpartition("/")[0]


def floor(path):
    return FLOORS.get(top_folder(path))


def read_sources(src):
    """Path below src -> its includes, as ('"' or '<', name)."""
    return {
        path.relative_to(src).as_posix(): INCLUDE.findall(path.read_text(encoding="utf-8"))
        for path in sorted(src.rglob("*")) if path.suffix in SOURCES
    }


def check_arrow(path, target):
    if floor(path) is None:
        return [f"{path} is in a folder without a floor: FLOORS of includes.py names them"]
    if floor(target) is not None and floor(target) > floor(path):
        return [f"{path} (floor {floor(path)}) includes {target} (floor {floor(target)})"]
    return []


def find_cycle(arrows):
    """Folders of which each includes the next, and the last the first; [] if there are none."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return way[way.index(node):]
        if node in done:
            return []
        way.append(node)
        for target in sorted(arrows.get(node, ())):
            if cycle := visit(target):
                return cycle
        way.pop()
        done.add(node)
        return []

    for node in sorted(arrows):
        if cycle := visit(node):
            return cycle
    return []


def violations(src):
    sources = read_sources(src)
    found, arrows = [], {}
    for path, includes in sources.items():
        for bracket, name in includes:
            if bracket == "<":
                if top_folder(path) in WITHOUT_CUDA and CUDA_HEADER.match(name):
                    found.append(f"{path} includes {name}, but is compiled without CUDA, too")
                continue
            beside = f"{folder(path)}/{name}"
            target = beside if beside in sources else name
            if target not in sources:
                found.append(f"{path} includes {name}, which is not in {src.name}")
                continue
            found += check_arrow(path, target)
            if floor(path) == floor(target) and folder(path) != folder(target):
                arrows.setdefault(folder(path), set()).add(folder(target))
    if cycle := find_cycle(arrows):
        found.append("these folders include each other in a circle: " + ", ".join(cycle))
    return found


# --------------------------------------------------------------------------- the test of the test

GOOD = {
    "api.cc": '#include "comm/comm.h"',
    "comm/comm.h": '#include <vector>\n#include "memory/window.h"',
    "memory/window.h": '#include "base/status.h"',
    "memory/kinds/host.cc": '#include "memory/window.h"\n#include "bootstrap/hub.h"',
    "bootstrap/hub.h": '#include "wire.h"',
    "bootstrap/wire.h": "",
    "base/status.h": "",
}

BAD = [  # (path, contents, the sentence)
    ("memory/window.h", '#include "comm/comm.h"',
     "memory/window.h (floor 4) includes comm/comm.h (floor 6)"),
    ("bootstrap/wire.h", '#include "memory/kinds/find.h"',
     "these folders include each other in a circle: bootstrap, memory/kinds"),
    ("base/status.h", "#  include <cuda_runtime.h>",
     "base/status.h includes cuda_runtime.h, but is compiled without CUDA, too"),
    ("attic/old.h", '#include "base/status.h"',
     "attic/old.h is in a folder without a floor: FLOORS of includes.py names them"),
    ("api.cc", '#include "gone.h"', "api.cc includes gone.h, which is not in src"),
]


def check_itself():
    def found_in(files):
        with tempfile.TemporaryDirectory() as scratch:
            src = pathlib.Path(scratch) / "src"
            for path, contents in files.items():
                (src / path).parent.mkdir(parents=True, exist_ok=True)
                (src / path).write_text(contents + "\n", encoding="utf-8")
            return violations(src)

    good = {**GOOD, "memory/kinds/find.h": ""}
    assert found_in(good) == [], found_in(good)
    for path, contents, sentence in BAD:
        found = found_in({**good, path: contents})
        assert found == [sentence], f"{path}: expected [{sentence!r}], found {found}"


def main():
    src = pathlib.Path(sys.argv[1])
    check_itself()
    found = violations(src)
    assert len(read_sources(src)) > 1, f"{src} has no sources"
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
