#!/usr/bin/env bash
# Measures the library beside PyTorch, ONNX Runtime and transformers, by turns. Tables, JSON and pictures go to
# build/peers/. Makes a virtual environment there first: 6 GB, most of it the graphics libraries that PyTorch brings.
#
#   --models DIR      a BLOOM checkpoint, a folder as on the hub: runs it, and attention on its q, k and v too
#   --only PART       attention, or pretrained, which needs --models (default: both)
#   --threads N       of everything that is timed (default: 1)
#   --quick           small sizes: checks that all runs, and measures nothing
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../cmake/setup.sh"

usage() {
  sed -n 's/^#   //p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

model='' selected='attention pretrained' threads=1 quick=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=(--quick) && shift && continue ;;
    --models | --only | --threads) [ $# -gt 1 ] || usage ;;
    *) usage ;;
  esac
  case $1 in
    --models) model=$(realpath -e "$2") ;;
    --only) selected=$2 ;;
    --threads) threads=$2 ;;
  esac
  shift 2
done
[[ $selected =~ ^(attention|pretrained|attention pretrained)$ && $threads =~ ^[1-9][0-9]*$ ]] || usage
if [ "$selected" = pretrained ] && [ -z "$model" ]; then
  echo "The part pretrained needs --models, the folder of a BLOOM checkpoint." >&2
  exit 2
fi

require gnuplot-nox libopenblas-dev libpcre2-dev nlohmann-json3-dev pkg-config python3-dev python3-venv
out=$root/build/peers
here=$root/bench/peers
python=$out/venv/bin/python
mkdir -p "$out"
if ! cmp --silent "$here/requirements.txt" "$out/venv/requirements.txt"; then
  run_step "make virtual environment" python3 -m venv --clear "$out/venv"
  run_step "install Python packages: some minutes" "$python" -m pip install --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$out/venv/"
fi
# Models are read from folders. What PyTorch compiles stays below build/ too.
export HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR=$out/inductor PYTHONDONTWRITEBYTECODE=1

if [[ $selected == *attention* ]]; then
  require libbenchmark-dev
  configure_part BENCHMARKS
  run_build "build the library for Python" bench_peers
fi
if [ -n "$model" ]; then
  configure_part EXAMPLES
  run_build "build pretrained" pretrained
fi

for part in $selected; do
  echo "==> $part"
  if [ "$part" = pretrained ]; then
    if [ -z "$model" ]; then
      echo "Left out: it needs --models, the folder of a BLOOM checkpoint."
      continue
    fi
    "$python" "$here/pretrained.py" --program "$build/examples/pretrained/pretrained" --model "$model" --out "$out" \
      --threads "$threads" "${quick[@]}"
  else
    trained=()
    if [ -n "$model" ]; then
      context=16384
      [ ${#quick[@]} -eq 0 ] || context=512
      run_step "read q, k and v of the model: $context tokens" "$python" "$here/bloom.py" "$model" qkv \
        --context "$context" --threads "$jobs" --out "$out/qkv.safetensors"
      trained=(--qkv "$out/qkv.safetensors")
    fi
    "$python" "$here/attention.py" --library "$build/bench/libbench_peers.so" --out "$out" --threads "$threads" \
      "${trained[@]}" "${quick[@]}"
  fi
done

echo
echo "Tables, JSON and pictures are in $out. bench/README.md says what was measured."
