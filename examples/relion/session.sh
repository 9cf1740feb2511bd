#!/usr/bin/env bash
# A session on the fly in RELION 3.1, 4 or 5: new micrographs of a table that grows are denoised, particles picked on
# the denoised ones and cut out of the raw ones. In the project's directory, with any variables of the flow:
#   session.sh micrographs=CtfFind/job003/micrographs_ctf.star diameter_min=150 diameter_max=180 box_px=256
# Each micrograph is denoised once. `touch session.end` ends the session after what is listed by then.
set -euo pipefail

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
if command -v relion_schemer >/dev/null; then
    program=(relion_schemer --scheme session) flows=$here/relion5/Schemes
else
    program=(relion_scheduler --schedule session) flows=$here/relion31/Schedules
fi
flow=$(basename "$flows")/session
[ -e default_pipeline.star ] || { echo "no RELION project: expected default_pipeline.star in $PWD" >&2; exit 2; }
# what is there already is gone on with
if [ ! -e "$flow" ]; then
    mkdir -p "$(dirname "$flow")"
    cp -r "$flows/session" "$flow"
fi
for setting in "$@"; do
    "${program[@]}" --set_var "${setting%%=*}" --value "${setting#*=}"
done
rm -f session.end
exec "${program[@]}" --run
