#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether what runs on a GPU is what was verified on one.

tests/verify_gpu.sh writes tests/verified.json after all its steps have passed. The record holds a
fingerprint of three parts, each a hash of contents without regard to file names:
- `host`: the sources of the cuda backend, of memory and of the protocol, without the bodies of
  functions that run on the device alone. Constants and launches belong to it, for they decide how
  kernels are launched, which PTX does not show.
- `kernels`: all of the kernels' sources, which are the .cu files and what they include.
- `ptx`: what one version of nvcc makes of the kernels, without debug information.
Comments, white space and #include lines do not count, so that moved files need no new run.

The tree is verified if `host` is the same, and either `kernels` is, or `ptx` is by the same version
of nvcc. Where nvcc is missing or has another version, the sources decide alone."""

import argparse
import concurrent.futures
import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

import count_results

# The files of the part `host`. Each pattern matches a file.
PATTERNS = [
    "src/nvcc_flags",
    "src/gpu/*",
    "src/backend/cuda/**/*",
    "src/memory/*",
    "src/memory/kinds/*",
    "src/protocol/*.h",
    "src/protocol/call_summary.cc",
    "src/protocol/data_type.cc",
    "src/config/*",
    "src/backend/*.*",
]
KERNELS = "src/**/*.cu"
INCLUDE_FOLDERS = ["src", "include"]
NVCC_FLAGS = "src/nvcc_flags"
PTX_ARCHITECTURE = "compute_90"

RECORD = "tests/verified.json"
REMEDY = "run tests/verify_gpu.sh on a machine with GPUs and commit tests/verified.json"

# ------------------------------------------------------------------------------------ sources

LITERAL = (
    r'R"(?P<mark{0}>[^\s()\\]*)\(.*?\)(?P=mark{0})"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<!\w)'(?:\\.|[^'\\\n])*'"
)
COMMENT = re.compile(r"(?P<comment>//(?:\\\n|[^\n])*|/\*.*?\*/)|" + LITERAL.format(1), re.DOTALL)
TOKEN = re.compile(
    r"^[ \t]*(?P<directive>#(?:\\\n|[^\n])*)|" + LITERAL.format(2) + r"|\w+|\S",
    re.DOTALL | re.MULTILINE,
)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">]+)[">]', re.MULTILINE)


def tokens_of(text):
    """What a compiler reads, but for #include lines: literals and directives stay whole."""
    text = COMMENT.sub(lambda match: " " if match["comment"] else match[0], text)
    tokens = []
    for match in TOKEN.finditer(text):
        if match["directive"] is None:
            tokens.append(match[0])
        elif not INCLUDE.match(match["directive"]):
            tokens.append(" ".join(match["directive"].replace("\\\n", " ").split()))
    return tokens


def body_after(tokens, begin):
    """Where the body of the function that is declared from `begin` on has its braces, or None."""
    depth, braces, opened = 0, 0, None
    for i in range(begin, len(tokens)):
        if opened is None:
            depth += {"(": 1, ")": -1}.get(tokens[i], 0)
            if depth > 0:
                continue
            if tokens[i] in ("=", ";"):
                return None
            if tokens[i] == "{":
                opened = i
        if opened is not None:
            braces += {"{": 1, "}": -1}.get(tokens[i], 0)
            if braces == 0:
                return opened, i
    return None


def without_device_bodies(tokens):
    """Keeps the bodies of functions that run on the host as well, and what may not be a body."""
    kept, i = [], 0
    while i < len(tokens):
        on_device = tokens[i] in ("__device__", "__global__")
        on_host = "__host__" in tokens[max(i - 1, 0) : i + 2]
        body = body_after(tokens, i) if on_device and not on_host else None
        if body:
            kept += tokens[i : body[0] + 1]
            i = body[1]
        else:
            kept.append(tokens[i])
            i += 1
    return kept


def hash_of(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def hash_of_all(hashes):
    return hash_of(sorted(hashes))


def hash_of_files(files, view=lambda tokens: tokens):
    return hash_of_all(hash_of(view(tokens_of(file.read_text()))) for file in files)


def matches_of(root, patterns):
    return sorted({file for pattern in patterns for file in root.glob(pattern) if file.is_file()})


def with_includes(root, files):
    """The files and what they include of the tree."""
    found, left = set(), list(files)
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        folders = [file.parent] + [root / folder for folder in INCLUDE_FOLDERS]
        for name in INCLUDE.findall(file.read_text()):
            left += [folder / name for folder in folders if (folder / name).is_file()][:1]
    return sorted(found)


# ---------------------------------------------------------------------------------------- PTX

# Of an anonymous namespace: nvcc derives both numbers from the path of the file.
ANONYMOUS = re.compile(r"\d*_GLOBAL__N__[0-9a-f]{8}_\d+_\w+?_cu_[0-9a-f]{8}")
DEBUG_LINE = re.compile(r"\.(loc|file)\b")


def find_nvcc():
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=home + "/bin")


def version_of(nvcc):
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"\bV([\d.]+)", said)[1]


def normalised_ptx(text):
    lines = (" ".join(line.split("//")[0].split()) for line in text.splitlines())
    lines = (line for line in lines if line and not DEBUG_LINE.match(line))
    return [ANONYMOUS.sub("ANONYMOUS", line) for line in lines]


def ptx_hash(root, nvcc, kernel):
    with tempfile.TemporaryDirectory() as folder:
        ptx = pathlib.Path(folder) / "ptx"
        command = [nvcc, "-ptx", "-arch=" + PTX_ARCHITECTURE, "-o", ptx, kernel]
        command += (root / NVCC_FLAGS).read_text().split()
        for include in INCLUDE_FOLDERS:
            command += ["-I", root / include]
        subprocess.run(command, check=True)
        return hash_of(normalised_ptx(ptx.read_text()))


def ptx_part(root, nvcc):
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = matches_of(root, [KERNELS])
        return hash_of_all(pool.map(lambda kernel: ptx_hash(root, nvcc, kernel), kernels))


# -------------------------------------------------------------------------------- fingerprint


def source_parts(root):
    return {
        "host": hash_of_files(matches_of(root, PATTERNS), without_device_bodies),
        "kernels": hash_of_files(with_includes(root, matches_of(root, [KERNELS]))),
    }


def fingerprint(root):
    parts = source_parts(root)
    nvcc = find_nvcc()
    if nvcc:
        parts["ptx"] = {"nvcc": version_of(nvcc), "hash": ptx_part(root, nvcc)}
    return parts


def has_same_ptx(root, recorded):
    nvcc = find_nvcc()
    return (
        nvcc is not None
        and recorded is not None
        and version_of(nvcc) == recorded["nvcc"]
        and ptx_part(root, nvcc) == recorded["hash"]
    )


def complaint(root):
    """What is wrong with the record, in one sentence, or None."""
    try:
        record = json.loads((root / RECORD).read_text())
        verified, date = record["fingerprint"], record["date"]
    except FileNotFoundError:
        return "Nothing has been verified on a GPU yet: {}.".format(REMEDY)
    except (ValueError, KeyError, TypeError):
        return "{} is not a record of a run on a GPU: {}.".format(RECORD, REMEDY)
    parts = source_parts(root)
    if parts["host"] != verified["host"]:
        changed = "constants, launches or memory of the cuda backend have"
    elif parts["kernels"] != verified["kernels"] and not has_same_ptx(root, verified.get("ptx")):
        changed = "the code of the kernels has"
    else:
        return None
    return "Since the run on a GPU of {}, {} changed: {}.".format(date, changed, REMEDY)


def what_was_verified(root):
    record = json.loads((root / RECORD).read_text())
    left_out = ", ".join(record.get("not_run", {})) or "nothing"
    return "What runs on a GPU was verified on {} x {}; left out there: {}.".format(
        len(record["machine"]["gpus"]), record["machine"]["gpus"][0], left_out
    )


# ------------------------------------------------------------------------------------- record


def ask_nvidia_smi(*arguments):
    return subprocess.run(
        ["nvidia-smi", *arguments], capture_output=True, text=True, check=True
    ).stdout


def machine():
    gpus = ask_nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader").splitlines()
    cuda = re.search(r"CUDA Version\s*:\s*([\d.]+)", ask_nvidia_smi())
    return {
        "gpus": [gpu.split(",")[0].strip() for gpu in gpus],
        "driver": gpus[0].split(",")[1].strip(),
        "cuda": cuda[1] if cuda else "unknown",
    }


def reasons_for_skips(report):
    """Why cases were skipped. The first line of what they say is the place in the source."""
    skips = xml.etree.ElementTree.parse(report).iter("skipped")
    return sorted({" ".join((skip.get("message") or "").split("\n")[1:]) for skip in skips})


def says_success(counts):
    return counts["failed"] == 0 and counts["passed"] > 0


def count(report):
    """Prints the numbers of a GoogleTest report. Returns whether they say success."""
    try:
        counts, _ = count_results.count_cases(report)
    except (OSError, xml.etree.ElementTree.ParseError):
        print("no report")
        return False
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**counts))
    return says_success(counts)


def write(root, results, parts, commit):
    """A line of `results` is a step, split by tabs: name, `ran` or `not run`, report or why."""
    steps, not_run = {}, {}
    for line in results.read_text().splitlines():
        name, outcome, detail = line.split("\t")
        if outcome == "ran":
            counts, _ = count_results.count_cases(detail)
            steps[name] = dict(counts, skipped_because=reasons_for_skips(detail))
        else:
            not_run[name] = detail
    if not steps or not all(map(says_success, steps.values())):
        sys.exit("not every step passed: there is nothing to record")
    record = {
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "steps": steps,
        "not_run": not_run,
        "fingerprint": json.loads(parts.read_text()),
    }
    (root / RECORD).write_text(json.dumps(record, indent=2) + "\n")


# --------------------------------------------------------------------------------------- main


def main(arguments):
    parser = argparse.ArgumentParser(description="Whether the tree is what was verified on a GPU.")
    parser.add_argument("--root", type=pathlib.Path, help="the tree; default: this script's")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compares the tree with the record")
    action.add_argument("--fingerprint", action="store_true", help="prints that of the tree")
    action.add_argument("--sources", action="store_true", help="prints its parts without PTX")
    action.add_argument("--count", metavar="REPORT", help="prints how many cases passed")
    action.add_argument("--write", type=pathlib.Path, metavar="RESULTS", help="writes the record")
    parser.add_argument("--parts", type=pathlib.Path, help="what --fingerprint has printed")
    parser.add_argument("--commit", help="what was verified")
    options = parser.parse_args(arguments)
    root = options.root or pathlib.Path(__file__).resolve().parent.parent
    if options.check:
        sentence = complaint(root)
        print(sentence or what_was_verified(root))
        return 1 if sentence else 0
    if options.count:
        return 0 if count(options.count) else 1
    if options.write:
        write(root, options.write, options.parts, options.commit)
    else:
        print(json.dumps(source_parts(root) if options.sources else fingerprint(root), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
