#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the commands for one TPU VM; with --go, runs them.
# usage: bash launch/tpu_vm.sh --name=NAME [options] -- VERB [its options]
# docs/launch/tpu_vm.md has examples. Needs Python 3.11 and no packages.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m musiclm_jax.cli.main launch tpu_vm "$@"
