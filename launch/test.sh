#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need into .venv and runs all of them, with lint.
# usage: bash launch/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_into_venv all,dev
# The TPU compiler lies beside the other packages, for these tests only: where
# jax finds it, every start looks for a TPU.
LIBTPU="$(dirname "$PYTHON")/../libtpu"
wanted="$(grep '^libtpu==' constraints.txt)"
if [ "$(cat "$LIBTPU/installed" 2>/dev/null)" != "$wanted" ] &&
  [ "$(uname -sm)" = "Linux x86_64" ]; then
  echo "launch: installing $wanted (480 MB) for the tests of musiclm check"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
    --upgrade --target "$LIBTPU" "$wanted"
  echo "$wanted" >"$LIBTPU/installed"
fi
export PYTHONPATH="$LIBTPU${PYTHONPATH:+:$PYTHONPATH}"
export JAX_PLATFORMS=cpu
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Most of the time goes into compiling, which uses one core: two workers. Files
# stay whole, for their tests share compiled programs.
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
