#!/usr/bin/env bash
# Both environments of an image, run at the top of the checkout: .venv (trainer) and .venv-sglang (servers), with the versions of versions.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

pinned() { sed -n "/^\[$1\]/,/^\[/{/==/p}" containers/versions.txt; }

# constraints.txt holds what tests run with on a CPU; torch built for CUDA wants a triton of its own, and the servers' NCCL.
{ grep -vE '^(torch|triton)[=<>]' constraints.txt; pinned trainer | grep -E '^(torch|triton)=='; } >constraints-image.txt
"$python" -m venv .venv
.venv/bin/pip install --no-cache-dir --constraint constraints-image.txt --editable ".[alfworld,kernels,megatron,sglang,search,webshop]"

"$python" -m venv .venv-sglang
pinned server >requirements-server.txt
.venv-sglang/bin/pip install --no-cache-dir --requirement requirements-server.txt
rm requirements-server.txt constraints-image.txt
