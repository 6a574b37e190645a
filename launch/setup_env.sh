#!/usr/bin/env bash
# Makes jaxz's Python environment for a cluster, and says what it takes:
#
#     launch/setup_env.sh PROFILE [FOLDER]        # on a login node, in the repository's root
#
# FOLDER (default $WORK/jaxz_env, without WORK ./.venv) gets the environment; pip's downloads and temporary files go
# beside it, never to HOME. PYTHON names an interpreter >= 3.11 that compute nodes have too, such as a module's.
# Run again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
profile=$1
python=${PYTHON:-python3}
folder=${2:-${WORK:+$WORK/jaxz_env}}
folder=${folder:-$PWD/.venv}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $python is older than 3.11; load a module (module avail python) or set PYTHON" >&2; exit 2; }

mkdir -p "$folder.cache"
export PIP_CACHE_DIR="$folder.cache/pip" TMPDIR="$folder.cache" XDG_CACHE_HOME="$folder.cache" PYTHONNOUSERSITE=1
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install --requirement requirements.txt
pip install --no-deps --editable .
"$folder/bin/python" -m launch.profile "$profile" | while read -r requirement; do
  echo "for $profile: $requirement"
  pip install "$requirement"
done

"$folder/bin/python" -m pip check || echo "pip finds the above: expected where the profile pins an older cuDNN" >&2
"$folder/bin/python" -c 'import jax, jaxz; print("jax", jax.__version__, "jaxz", jaxz.__version__)'
rm -rf "$folder.cache"
echo "$folder: $(du -sh "$folder" | cut -f1), $(find "$folder" | wc -l) inodes"
echo "use it: source $folder/bin/activate"
