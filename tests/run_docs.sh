#!/usr/bin/env bash
# Builds the documentation site into site/ in an environment of its own; a broken link fails it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv-docs/bin/mkdocs ] || "${PYTHON:-python3}" -m venv .venv-docs
.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check mkdocs==1.6.1
exec .venv-docs/bin/mkdocs build --strict --quiet "$@"
