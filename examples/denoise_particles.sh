#!/usr/bin/env bash
# Sets up everything in its own environment (.venv) and denoises the 56 real particles of examples/data.
# Prints where the denoised stack, its table and the picture are. Arguments go to `cryohush denoise`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/cryohush ] || echo "Installing into .venv: 1.5 GB for the CPU, 5 GB with CUDA; this takes some minutes."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt .

exec .venv/bin/cryohush denoise examples/data/particles.star --output examples/output/particles --overwrite "$@"
