#!/usr/bin/env bash
# Sets up everything in its own environment (.venv-tests) and runs all checks: ruff, mypy and pytest.
# Arguments go to pytest. CRYOHUSH_REQUIRE_RELION=1 fails, rather than skips, what needs RELION 3.1.3, and
# CRYOHUSH_REQUIRE_CRYOSPARC47=1 makes the environment (.venv-cryosparc47) for what needs cryosparc-tools 4.7.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[ -x .venv-tests/bin/python ] || "$python" -m venv .venv-tests
.venv-tests/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt '.[train,evaluate,batch,baselines,test]'

if [ -n "${CRYOHUSH_REQUIRE_CRYOSPARC47:-}" ] && [ -z "${CRYOHUSH_CRYOSPARC47_PYTHON:-}" ]; then
    # Its own client, and behind it all the packages of the first environment.
    [ -x .venv-cryosparc47/bin/python ] || .venv-tests/bin/python -m venv .venv-cryosparc47
    packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    echo "import site; site.addsitedir('$(.venv-tests/bin/python -c "$packages")')" \
        >"$(.venv-cryosparc47/bin/python -c "$packages")/tests.pth"
    .venv-cryosparc47/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
        cryosparc-tools==4.7.1
    export CRYOHUSH_CRYOSPARC47_PYTHON="$PWD/.venv-cryosparc47/bin/python"
fi

.venv-tests/bin/ruff check .
.venv-tests/bin/ruff format --check .
.venv-tests/bin/mypy -p cryohush
exec .venv-tests/bin/python -m pytest "$@"
