#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the commands for all hosts of a TPU slice, started by ssh; with --go, runs them.
# usage: bash launch/slice.sh --name=NAME [options] -- VERB [its options]
# docs/launch/slice.md has examples. Needs Python 3.11 and no packages.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m musiclm_jax.cli.main launch slice "$@"
