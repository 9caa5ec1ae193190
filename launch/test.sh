#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need into .venv and runs all of them, with lint.
# usage: bash launch/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_into_venv all,dev
export JAX_PLATFORMS=cpu
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Most of the time goes into compiling, which uses one core: two workers. Files
# stay whole, for their tests share compiled programs.
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
