#!/usr/bin/env bash
# The CUDA kernels on a GPU, in one command: build, parity, NVIDIA's sanitizers, timings. Needs nvcc, a CUDA torch,
# scikit-build-core, cmake, ninja and pytest, and no network. Writes benchmarks/results/gpu-<device>.csv.
#
#   tests/gpu/run.sh [quick]      quick: without the sanitizers
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
say() { printf '\n==> %s (%ss)\n' "$1" "$SECONDS"; }

say "build for this machine's device"
architecture=$("$python" -c 'import torch; print("%d%d-real" % torch.cuda.get_device_capability())')
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install -q --no-build-isolation --no-deps --no-index --target "$site" \
  -Ccmake.define.MINIDL_CUDA=ON -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture" .
export PYTHONPATH="$site" MINIDL_OFFLINE=1
cd tests/gpu # in the root, Python would import the source folder

say "parity"
"$python" -m pytest -q -c /dev/null --rootdir . -p no:cacheprovider test_cuda.py test_train_step.py

if [ "${1:-}" != quick ] && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    say "compute-sanitizer $tool"
    # Every block of memory its own, so that a step beyond it is seen; initcheck also looks at torch's kernels.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      --kernel-name regex:kns=minidl "$python" smoke.py
  done
fi

say "timings"
"$python" timings.py ../../benchmarks/results
say "done"
