#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under nine minutes: bash benchmarks/gpu.sh
#
# For a machine that is lent for minutes and reaches no network: packages that it lacks come from .whl/ (pure Python and
# CPython 3.12 wheels, put there with `pip download`), results go to $OUT. Each step has a time limit of its own, the next
# one runs whatever becomes of it, and the summary comes last. STEPS="smoke tests" runs some of the steps only.
set -u
cd "$(dirname "$0")/.." || exit
out=${OUT:-/tmp/coatref-gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
began=$SECONDS
steps="install ${STEPS:-smoke tests benchmark larger}"
summary=()

step() { # name, seconds, command...: its output goes to $out/name.log, the end of it is shown
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  [[ " $steps " == *" $name "* ]] || return 0
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  summary+=("$(printf '%-10s exit %3d after %3d s (limit %d)' "$name" "$code" $((SECONDS - start)) "$limit")")
  printf '\n=== %s: exit %d after %d s\n' "$name" "$code" $((SECONDS - start))
  return $code
}

if compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d)
  step install 60 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$site" .whl/*.whl || tail -5 "$out/install.log"
  export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
else
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null

step smoke 110 "$python" -m benchmarks.gpu_smoke
tail -n 75 "$out/smoke.log" 2>/dev/null

# Warnings of other versions than the pinned ones are no failures here; JAX is tested on the CPU, it would take the GPU's memory.
tests=()
for file in tests/test_fast_cupy.py tests/test_fast_torch.py tests/test_backends.py; do
  [[ -e $file ]] && tests+=("$file")
done
JAX_PLATFORMS=cpu step tests 135 "$python" -m pytest "${tests[@]}" -k 'cuda or (test_backends and cupy)' \
  -q -W ignore -n 6 --maxfail=10 --continue-on-collection-errors -p no:cacheprovider --tb=short -rf --durations=5
grep -E '^(FAILED|ERROR|E  )' "$out/tests.log" 2>/dev/null | cut -c1-300 | head -n 40
tail -n 12 "$out/tests.log" 2>/dev/null | cut -c1-300

step benchmark 230 "$python" -m benchmarks --device cuda --json "$out/cuda.json"
tail -n 70 "$out/benchmark.log" 2>/dev/null
left=$((525 - (SECONDS - began)))
step larger "$left" "$python" -m benchmarks --device cuda --models coatnet_1_rw_224 --json "$out/cuda.json"
tail -n 50 "$out/larger.log" 2>/dev/null

printf '\n=== summary, %d s\n' $((SECONDS - began))
printf '%s\n' "${summary[@]}"
tail -n 1 "$out/smoke.log" 2>/dev/null
tail -n 1 "$out/tests.log" 2>/dev/null
