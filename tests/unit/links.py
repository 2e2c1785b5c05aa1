#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every link between the documents leads to a file, and to a heading of it. Every source file that they name
in backticks exists.

usage: links.py ROOT
"""
import pathlib
import re
import sys

LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SOURCE = re.compile(r"`([\w./-]+\.(?:h|c|cc|cu|cuh|py|sh|build))`")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def text_of(document):
    return FENCED.sub("", document.read_text(encoding="utf-8"))


def anchors(document):
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in HEADING.findall(text_of(document))}


def broken_links(root, documents):
    for document in documents:
        for name, anchor in LINK.findall(text_of(document)):
            if re.match(r"[a-z]+:", name):  # elsewhere
                continue
            target = (document.parent / name).resolve() if name else document
            link = f"{document.relative_to(root)}: {name}{'#' + anchor if anchor else ''}"
            if not target.exists():
                yield f"{link}: there is no such file"
            elif anchor and anchor not in anchors(target):
                yield f"{link}: there is no such heading"


def missing_sources(root, documents, files):
    for document in documents:
        for name in SOURCE.findall(text_of(document)):
            # `kernels/common/ptx.cuh` is enough where one file ends so.
            if not any(("/" + path).endswith("/" + name) for path in files):
                yield f"{document.relative_to(root)}: there is no file {name}"


def files_of(root):
    for entry in sorted(root.iterdir()):
        if entry.is_file():
            yield entry
        elif entry.name != ".git" and not entry.name.startswith("build"):
            yield from sorted(entry.rglob("*.*"))


def main(root):
    files = list(files_of(root))
    documents = [path for path in files if path.suffix == ".md"]
    names = [path.relative_to(root).as_posix() for path in files]
    broken = list(broken_links(root, documents)) + list(missing_sources(root, documents, names))
    print("\n".join(broken) if broken else f"{len(documents)} documents lead to files that exist")
    return bool(broken) or len(documents) < 2


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]).resolve()))
