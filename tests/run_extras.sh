#!/usr/bin/env bash
# Installs cryohush without extras, then with each extra alone, as users do, and runs the commands that it is for.
# The environments share the packages of the first (in .venv-extras), pip among them, so that each takes seconds.
# Arguments: the extras to try; all of them without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=.venv-extras
rm -rf "$folder" && mkdir "$folder"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

megabytes() { du -sm "$1/lib" | cut -f 1; }
# A source tree that pip may write to, so that the checkout stays clean.
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work" 2>/dev/null || true
install() { "$1/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "${@:2}"; }

"${PYTHON:-python3}" -m venv "$folder/none"
# Python compiles what the commands import, and keeps it; all of torch takes longer than everything else here.
unset PYTHONDONTWRITEBYTECODE
install "$folder/none" --no-compile "$work"
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
base=$("$folder/none/bin/python" -c "$packages")
echo "none: $(megabytes "$folder/none") MB"

particles=examples/data/particles.star
try() { # EXTRA COMMAND...
    local bin=$folder/$1/bin
    shift
    "$bin"/"$@" >"$work/log" 2>&1 || { echo "failed: $*" >&2; tail -n 20 "$work/log" >&2; exit 1; }
}
try none cryohush denoise "$particles" --output "$work/denoised" --device cpu
try none cryohush models info general
try none relion_cryohush --help
# what needs an extra says which package is missing, in one line
for words in "train general --output $work/t --set data.structures=$work" "batch --dry-run examples/batch/plan.yaml"; do
    # shellcheck disable=SC2086
    if "$folder/none/bin/cryohush" $words >"$work/log" 2>&1 || grep -q Traceback "$work/log"; then
        echo "cryohush $words: expected one line about a missing package" >&2
        cat "$work/log" >&2
        exit 1
    fi
done

cat >"$work/plan.yaml" <<END
output: $work/batch
engine: {kind: local, device: cpu, workers: 1, threads: 1, dashboard: null}
sources: [{file: $PWD/$particles}]
END
for extra in "${@:-train evaluate batch cryosparc baselines}"; do
    for name in $extra; do
        "$folder/none/bin/python" -m venv --without-pip "$folder/$name"
        echo "import site; site.addsitedir('$base')" >"$("$folder/$name/bin/python" -c "$packages")/base.pth"
        before=$(megabytes "$folder/$name")
        install "$folder/$name" "$work[$name]"
        echo "$name: $(($(megabytes "$folder/$name") - before)) MB more"
        case $name in
            train) try train cryohush simulate examples/simulate.yaml --output "$work/simulated" --set n_images=8 ;;
            evaluate)
                # a copy stands for other frames: nothing says that the denoised ones were made from it
                cp -r "$(dirname "$particles")" "$work/frames"
                try evaluate cryohush evaluate --pairs "$work/denoised/particles.star" \
                    "$work/frames/particles.star" --output "$work/report"
                ;;
            batch) try batch cryohush batch "$work/plan.yaml" ;;
            cryosparc) try cryosparc cryosparc_cryohush denoise --help ;;
            baselines) try baselines python -c 'import bm3d' ;;
        esac
    done
done
echo "every extra alone runs its commands"
