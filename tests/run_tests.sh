#!/usr/bin/env bash
# Sets up everything in its own environment (.venv-tests) and runs all checks: ruff, mypy and pytest.
# Arguments go to pytest. CRYOHUSH_REQUIRE_RELION=1 fails, rather than skips, what needs RELION 3.1.3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[ -x .venv-tests/bin/python ] || "$python" -m venv .venv-tests
.venv-tests/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt '.[train,evaluate,baselines,test]'

.venv-tests/bin/ruff check .
.venv-tests/bin/ruff format --check .
.venv-tests/bin/mypy -p cryohush
exec .venv-tests/bin/python -m pytest "$@"
