#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# verify_gpu.sh writes a record only if every step passed, says what could not run, and names what
# failed. Programs that only write reports stand for the GPUs and the suites.
set -euo pipefail
tests=$(cd "$(dirname "$0")/.." && pwd)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"/{bin,src/backend/cuda/kernels,src/memory,tests,build/tests}
cp "$tests"/{verify_gpu.sh,verified.py,count_results.py} "$folder/tests"
cd "$folder"
echo '-O3' >src/nvcc_flags
echo 'int kernel = 1;' >src/backend/cuda/kernels/kernel.cu

fail() {
  printf 'verify_gpu: %s in:\n%s\n' "$1" "$output" >&2
  exit 1
}

make_program() {  # PATH, and its text on standard input
  { echo '#!/bin/bash'; cat; } >"$1"
  chmod +x "$1"
}

# A suite that fails a case where its arguments contain WHERE.
make_suite() {  # [WHERE]
  make_program build/tests/mpi_suite <<END
echo "\$*, GPU \${CUDA_VISIBLE_DEVICES:-any}, memory \${HEP_MEMORY:-any}"
write_case() { echo "<testcase classname='S' name='\$1' status='run'>\$2</testcase>"; }
report=\${!#}
exec 3>"\${report#*xml:}"
echo "<all>\$(write_case Passes)" >&3
write_case Skips "<skipped message='a.cc:1&#x0A;not here'/>" >&3
[[ "\$*" != *"${1:-no such text}"* ]] || {
  echo '[  FAILED  ] S.Fails (1 ms)'
  echo "\$(write_case Fails "<failure message='bad'/>")</all>" >&3
  exit 1
}
echo '</all>' >&3
END
  tee build/tests/{fault_suite,dead_context_test} <build/tests/mpi_suite >/dev/null
  chmod +x build/tests/*
}

make_gpus() {  # COUNT
  make_program bin/nvidia-smi <<END
case "\$*" in
  *=uuid*) for i in \$(seq $1); do echo "GPU-\$i"; done ;;
  *=name*) for i in \$(seq $1); do echo 'NVIDIA H200, 580.1'; done ;;
  *) echo 'CUDA Version: 13.0' ;;
esac
END
}

make_program bin/mpirun <<'END'
while [[ $1 == -* ]]; do [ "$1" != -np ] || shift; shift; done
OMPI_COMM_WORLD_LOCAL_RANK=1 exec "$@"
END
make_program bin/compute-sanitizer <<'END'
while [[ $1 != build/* ]]; do shift; done
exec "$@"
END

run() {  # STATUS LAST_LINE ARGUMENT...
  local expected=$1 last=$2 status=0
  shift 2
  rm -f tests/verified.json
  output=$(env -u CUDA_VISIBLE_DEVICES CUDA_HOME=/nonexistent PATH="$folder/bin:/usr/bin:/bin" \
    tests/verify_gpu.sh --commit abc --logs logs "$@" 2>&1) || status=$?
  [ "$status" = "$expected" ] || fail "ended with $status instead of $expected"
  [[ ${output##*$'\n'} == "$last"* ]] || fail "no last line '$last'"
  [ "$status" = 0 ] || [ ! -e tests/verified.json ] || fail 'there is a record of a failure'
}

expect_said() {  # TEXT
  [[ $output == *"$1"* ]] || fail "no '$1'"
}

expect_recorded() {  # TEXT
  grep -qF -- "$1" tests/verified.json || fail "no '$1' in $(cat tests/verified.json)"
}

make_suite
make_gpus 2
run 1 'NOT verified: there is no build/tests/verified_sources'
echo old >build/tests/verified_sources
run 1 'NOT verified: build is not of this tree'
tests/verified.py --sources >build/tests/verified_sources

run 0 'verified: commit abc'
expect_said 'passed: 4 ranks: 1 passed, 0 failed, 1 skipped'
expect_said 'not run: faults: needs 3 GPUs'
expect_recorded '"NVIDIA H200"'
expect_recorded '"not here"'
expect_recorded '"faults": "needs 3 GPUs'
cmp -s tests/verified.json logs/verified.json || fail 'no copy of the record'
grep -q 'GPU GPU-2' logs/log.txt || fail 'no process of its own GPU'
grep -q 'memory ipc' logs/log.txt || fail 'no run with HEP_MEMORY=ipc'
tests/verified.py --check >/dev/null || fail 'the record is not of this tree'

run 1 'NOT verified: only the steps' --only memcheck
make_gpus 1
run 1 'NOT verified: only the steps' --only processes
expect_said 'not run: processes that see their own GPU: needs 2 GPUs'
make_gpus 4
run 1 'NOT verified: only the steps' --only faults
expect_said 'passed: faults of rank 1'
make_gpus 0
run 1 'NOT verified: there is no GPU'

make_gpus 2
make_suite '--replays'
run 1 'NOT verified: failed steps: 1' --only ranks
expect_said 'FAILED: graphs of 2 ranks: exit status 1, 1 passed, 1 failed, 1 skipped'
expect_said '[  FAILED  ] S.Fails'
make_program build/tests/mpi_suite <<<'exit 0'
run 1 'NOT verified: failed steps: 1' --only '4 ranks'
expect_said 'FAILED: 4 ranks: exit status 1, no report'
