#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A wheel installs into a fresh environment and works there, with its own library and header. With
# LIBRARY that library is packed; without, Meson builds one from a copy of the tree, and an editable
# install works there, too.
# usage: wheel.sh PYTHON ROOT [LIBRARY]
set -euo pipefail
python=$1
root=$2
library=${3:+$(realpath "$3")}
unset HYBRIDEP_LIBRARY LD_LIBRARY_PATH PYTHONPATH
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
  echo "the module venv of $python is not installed"
  exit 77
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

settings=(--config-settings library="$library")
if [ -z "$library" ]; then
  settings=(--config-settings meson-args=-Dcuda=disabled)
  mkdir tree
  tar -C "$root" --exclude='./build*' --exclude=./.git -cf - . | tar -C tree -xf -
  root=$scratch/tree
fi

# One environment has pip, and serves the others: making pip takes most of the time.
run_pip() {  # ARGUMENT...
  packed/bin/pip --quiet --disable-pip-version-check "$@"
}
# Whether the package works, and finds its library below a folder.
check() {  # ENVIRONMENT FOLDER
  "$1/bin/python" -m hybridep --check | tee report
  grep -q 'check  *2 ranks on the host backend: right' report
  "$1/bin/python" - "$2" <<'PYTHON'
import os, subprocess, sys
import hybridep
folder = os.path.realpath(sys.argv[1])
assert hybridep.get_library().startswith(folder), (hybridep.get_library(), folder)
with open("use.c", "w") as source:
    source.write("#include <hybridep.h>\n"
                 "int main(void) { int v; return hepGetVersion(&v) != 0 || v != HEP_VERSION; }\n")
subprocess.run(["cc", "-I", hybridep.get_include(), "-o", "use", "use.c", hybridep.get_library(),
                "-Wl,-rpath," + os.path.dirname(hybridep.get_library())], check=True)
subprocess.run(["./use"], check=True)
PYTHON
}

"$python" -m venv packed
run_pip wheel --no-index --no-deps --wheel-dir wheels "${settings[@]}" "$root/src/bindings/python"
ls wheels | tee names
grep -qE '^hybridep-[0-9.]+-py3-none-linux_[a-z0-9_]+\.whl$' names
run_pip install --no-index wheels/*.whl
check packed packed

if [ -z "$library" ]; then
  "$python" -m venv --without-pip editable
  run_pip --python editable install --no-index "${settings[@]}" \
    --editable "$root/src/bindings/python"
  check editable "$root"
else
  # Told so, it packs no library, and takes one that is installed.
  "$python" -m venv --without-pip installed
  run_pip --python installed install --no-index --config-settings library=installed \
    "$root/src/bindings/python"
  [ ! -e "$(echo installed/lib/python*/site-packages/hybridep)/lib" ]
  HYBRIDEP_LIBRARY=$library check installed "$(dirname "$library")"
fi
