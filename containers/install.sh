#!/usr/bin/env bash
# The environments of an image, run at the top of the checkout. DEVICE=cuda (default): .venv (trainer) and .venv-sglang (servers), with the versions of
# versions.txt. DEVICE=cpu: .venv alone, with those of constraints.txt, which are what tests run with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} device=${DEVICE:-cuda}

pinned() { sed -n "/^\[$1\]/,/^\[/{/==/p}" containers/versions.txt; }

case $device in
  # torch built for CUDA wants a triton of its own, and the servers' NCCL
  cuda) { grep -vE '^(torch|triton)[=<>]' constraints.txt; pinned trainer | grep -E '^(torch|triton)=='; } >constraints-image.txt ;;
  cpu) cp constraints.txt constraints-image.txt ;;
  *) echo "DEVICE: cuda or cpu, not '$device'" >&2; exit 1 ;;
esac
"$python" -m venv .venv
export PATH=$PWD/.venv/bin:$PATH # Fast Downward's build calls `python`, which Debian and Ubuntu do not have under that name
.venv/bin/pip install --no-cache-dir --constraint constraints-image.txt --editable ".[train,alfworld,gguf,kernels,megatron,sglang,search,webshop]"
rm constraints-image.txt

if [[ $device == cuda ]]; then
  "$python" -m venv .venv-sglang
  pinned server >requirements-server.txt
  .venv-sglang/bin/pip install --no-cache-dir --requirement requirements-server.txt
  rm requirements-server.txt
fi
