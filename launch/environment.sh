# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts: makes or reuses .venv and installs the package.
# usage: install_into_venv EXTRAS   (for example: all, or all,dev)
# Sets PYTHON to the interpreter of the environment.

install_into_venv() {
  local extras=$1 venv=${MUSICLM_VENV:-.venv} base=${PYTHON:-python3} mark
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "launch: $base is older than Python 3.11; set PYTHON to a newer one" >&2
    exit 1
  fi
  if [ ! -x "$venv/bin/python" ]; then
    echo "launch: making the virtual environment $venv"
    "$base" -m venv "$venv"
  fi
  PYTHON="$PWD/$venv/bin/python"
  case "$venv" in /*) PYTHON="$venv/bin/python" ;; esac
  # Install again only when the requirements changed.
  mark="$(cat setup.py constraints.txt | cksum) $extras"
  if [ "$(cat "$venv/.musiclm_installed" 2>/dev/null)" != "$mark" ]; then
    echo "launch: installing musiclm_jax[$extras] (about 2 minutes)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check \
      --constraint constraints.txt --editable ".[$extras]"
    echo "$mark" >"$venv/.musiclm_installed"
  fi
}
