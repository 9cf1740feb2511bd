#!/usr/bin/env bash
# Sets up everything in its own environment (.venv-tests) and runs all checks: ruff, mypy and pytest, some files at a
# time. Arguments go to pytest. CRYOHUSH_REQUIRE_RELION=1 fails, rather than skips, what needs RELION 3.1.3, and
# CRYOHUSH_REQUIRE_CRYOSPARC47=1 makes the environment (.venv-cryosparc47) for what needs cryosparc-tools 4.7,
# CRYOHUSH_REQUIRE_CCPEM=1 that (.venv-ccpem) for the CCP-EM pipeliner.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[ -x .venv-tests/bin/python ] || "$python" -m venv .venv-tests
# Python compiles what is imported, and keeps it; all of torch alone takes three times as long.
unset PYTHONDONTWRITEBYTECODE
pip_install() { "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "${@:2}"; }
install() { pip_install .venv-tests --constraint constraints.txt "$1"; }
install ruff
.venv-tests/bin/ruff check .
.venv-tests/bin/ruff format --check .
install '.[train,evaluate,batch,baselines,test]'
.venv-tests/bin/mypy -p cryohush

packages='import sysconfig; print(sysconfig.get_path("purelib"))'
beside() { # FOLDER PIP-ARGUMENTS...: packages of its own, behind them all those of the first environment, with pip
    [ -x "$1/bin/python" ] || .venv-tests/bin/python -m venv --without-pip "$1"
    echo "import site; site.addsitedir('$(.venv-tests/bin/python -c "$packages")')" \
        >"$("$1/bin/python" -c "$packages")/tests.pth"
    pip_install "$@"
}
if [ -n "${CRYOHUSH_REQUIRE_CRYOSPARC47:-}" ] && [ -z "${CRYOHUSH_CRYOSPARC47_PYTHON:-}" ]; then
    beside .venv-cryosparc47 --no-deps cryosparc-tools==4.7.1
    export CRYOHUSH_CRYOSPARC47_PYTHON="$PWD/.venv-cryosparc47/bin/python"
fi
if [ -n "${CRYOHUSH_REQUIRE_CCPEM:-}" ] && [ -z "${CRYOHUSH_CCPEM_PYTHON:-}" ]; then
    beside .venv-ccpem ccpem-pipeliner==1.6.1
    # the pipeliner looks for the program on the PATH
    printf '#!/bin/sh\nexec "%s" -c "import sys; from cryohush.relion_external.cli import main; sys.exit(main())" "$@"\n' \
        "$PWD/.venv-ccpem/bin/python" >.venv-ccpem/bin/relion_cryohush
    chmod +x .venv-ccpem/bin/relion_cryohush
    export CRYOHUSH_CCPEM_PYTHON="$PWD/.venv-ccpem/bin/python"
fi

# One more process than there are cores: some tests wait for RELION, which looks every ten seconds at its jobs.
processes=$(($(nproc) < 8 ? $(nproc) + 1 : 8))
export OMP_NUM_THREADS=1
exec .venv-tests/bin/python -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
