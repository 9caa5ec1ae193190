#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to generated music and a report page: installs the package into
# .venv, builds the demo corpus, trains every part at size tiny, generates and
# evaluates. Run it again to go on where it stopped.
# usage: bash launch/quickstart.sh [--workdir DIR] [further quickstart options]
set -euo pipefail
# A relative --workdir is meant from where the caller stands.
export MUSICLM_CALLER_DIR=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_into_venv all
exec "$PYTHON" -m musiclm_jax.cli.main quickstart "$@"
