#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the commands for queued resources with a start-up script; with --go, runs them.
# usage: bash launch/queued.sh --name=NAME [options] -- VERB [its options]
# docs/launch/queued.md has examples. Needs Python 3.11 and no packages.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m musiclm_jax.cli.main launch queued "$@"
