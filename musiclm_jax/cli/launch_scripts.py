# SPDX-License-Identifier: Apache-2.0
"""Shell scripts that run on hosts: install, run, run again after failures.

Exit code 0 ends a job, and so do 1 (user error) and 2 (bad command line). 42
(infrastructure), 143 (pre-empted) and any other code, as of a crash, start it
again from its newest checkpoint. Values flow in only as quoted assignments at
the top of a script.
"""

import shlex
from collections.abc import Mapping, Sequence

_HOST = r"""
ROOT=${MUSICLM_ROOT:-${HOME:-/root}/musiclm}
PYTHON=${MUSICLM_PYTHON:-$ROOT/venv/bin/python}
RESTART_SECS=${MUSICLM_RESTART_SECS:-30}
export HOME=${HOME:-/root}
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install() {
  [ -n "${MUSICLM_PYTHON:-}" ] && return
  [ -f "$ROOT/installed" ] && return
  rm -rf "$ROOT/source" && mkdir -p "$ROOT/source" || return
  case "$SOURCE" in
    gs://*)
      gcloud storage cp "$SOURCE" "$ROOT/source.tar.gz" &&
        tar -xzf "$ROOT/source.tar.gz" -C "$ROOT/source" || return ;;
    *)
      git clone "${SOURCE%%#*}" "$ROOT/source" || return
      case "$SOURCE" in
        *#*) git -C "$ROOT/source" checkout "${SOURCE#*#}" || return ;;
      esac ;;
  esac
  # The image's own Python may be older than 3.11: uv brings one.
  python3 -m pip install --quiet --target "$ROOT/uv" uv || return
  local uv="$ROOT/uv/bin/uv"
  "$uv" venv --quiet --clear --python 3.11 "$ROOT/venv" &&
    "$uv" pip install --quiet --python "$PYTHON" \
      --constraint "$ROOT/source/constraints.txt" \
      --editable "$ROOT/source[train,tpu]" || return
  touch "$ROOT/installed"
}

mount_bucket() {
  [ -z "$BUCKET" ] && return
  mountpoint -q "/gcs/$BUCKET" && return
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc
    local site=https://packages.cloud.google.com/apt
    curl -fsS "$site/doc/apt-key.gpg" | as_root tee $key >/dev/null || return
    echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
      as_root tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null || return
    as_root apt-get -qq update && as_root apt-get -qq install -y gcsfuse ||
      return
  fi
  as_root mkdir -p "/gcs/$BUCKET" &&
    as_root chown "$(id -u)" "/gcs/$BUCKET" &&
    gcsfuse --implicit-dirs "$BUCKET" "/gcs/$BUCKET"
}

child= stopping=
stop() {
  stopping=1
  [ -n "$child" ] && kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

tries=0
until install && mount_bucket; do
  tries=$((tries + 1))
  echo "musiclm launch: installing failed, try $tries of 5" >&2
  if [ $tries -ge 5 ] || [ -n "$stopping" ]; then exit 42; fi
  sleep "$RESTART_SECS"
done
[ -d "$ROOT/source" ] && cd "$ROOT/source"

restarts=0
while :; do
  "$PYTHON" -m musiclm_jax.cli.main "${COMMAND[@]}" &
  child=$!
  wait "$child"
  code=$?
  if [ -n "$stopping" ]; then
    # The signal ended `wait` before the child had saved and stopped.
    wait "$child"
    again=$?
    [ $again -ne 127 ] && code=$again
  fi
  echo "musiclm launch: $NAME ended with $code after $restarts restarts"
  [ -n "$stopping" ] && exit "$code"
  case $code in 0 | 1 | 2) break ;; esac
  [ $restarts -ge "$MAX_RESTARTS" ] && break
  restarts=$((restarts + 1))
  sleep "$RESTART_SECS"
done
# Tells `--action=watch` that the job is over.
[ -n "$BUCKET" ] && echo "$code" |
  gcloud storage cp - "gs://$BUCKET/$NAME/launch/exit_code.$(hostname)"
exit "$code"
"""

_SLURM = r"""
# Tells a task that must not run again from those that only lost their peer.
FAILED="$SLURM_SUBMIT_DIR/$NAME-$SLURM_JOB_ID.failed"
export FAILED PYTHON
rm -f "$FAILED"
srun bash -c '
  stopping=
  trap "stopping=1; kill -TERM \$child 2>/dev/null" TERM
  "$PYTHON" -m musiclm_jax.cli.main "$@" &
  child=$!
  wait "$child"; code=$?
  if [ -n "$stopping" ]; then
    wait "$child"; again=$?
    [ $again -ne 127 ] && code=$again
  fi
  case $code in 1 | 2) echo "$code" >"$FAILED" ;; esac
  exit $code' musiclm "${COMMAND[@]}"
code=$?
if [ -f "$FAILED" ]; then
  exit "$(head -n 1 "$FAILED")"
fi
if [ $code -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ]; then
  echo "musiclm launch: $NAME ended with $code, going back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""

_WATCH = r"""
POLL_SECS=${MUSICLM_POLL_SECS:-60}
refused=0
while :; do
  code=$(gcloud storage cat "gs://$BUCKET/$NAME/launch/exit_code.*" \
    2>/dev/null | sort -rn | head -n 1)
  if [ -n "$code" ]; then
    echo "musiclm launch: $NAME is over, exit code $code"
    exit "$code"
  fi
  state=$(gcloud compute tpus queued-resources describe "$NAME" "${AT[@]}" \
    --format='value(state.state)' 2>/dev/null)
  echo "$(date -u +%FT%TZ) $NAME: ${state:-absent}"
  case "$state" in
    "")
      if create; then
        refused=0
      else
        refused=$((refused + 1))
        [ $refused -ge 5 ] && exit 42
      fi ;;
    SUSPENDED | FAILED)
      gcloud compute tpus queued-resources delete "$NAME" "${AT[@]}" \
        --force --quiet ;;
  esac
  sleep "$POLL_SECS"
done
"""


def assign(name: str, value: str | Sequence[str]) -> str:
  """`NAME=value` or `NAME=(values)` with everything quoted."""
  if isinstance(value, str):
    return f"{name}={shlex.quote(value)}"
  return f"{name}=({' '.join(shlex.quote(item) for item in value)})"


def file_command(name: str, content: str) -> str:
  """Shell that writes `content` to file `name`, whatever it holds."""
  mark = "MUSICLM_END"
  while mark in content:
    mark += "_"
  return f"cat >{shlex.quote(name)} <<'{mark}'\n{content.rstrip()}\n{mark}\n"


def host_script(
  name: str,
  source: str,
  bucket: str,
  command: Sequence[str],
  environment: Mapping[str, str],
  max_restarts: int,
) -> str:
  """The script one TPU host runs: installs once, then runs until it is over.

  Args:
    name: of the job.
    source: gs:// archive of a checkout, or a git address with an optional
      '#revision'.
    bucket: mounted at /gcs/BUCKET; '' for none.
    command: verb and options.
    environment: variables of the run.
    max_restarts: after any exit code but 0, 1 and 2.
  """
  lines = [
    "#!/usr/bin/env bash",
    f"# Written by `musiclm launch`: runs one host of {name}, and runs it",
    "# again unless it is done (0) or the user has to act (1, 2).",
    "set -uo pipefail",
    assign("NAME", name),
    assign("SOURCE", source),
    assign("BUCKET", bucket),
    assign("MAX_RESTARTS", str(max_restarts)),
    assign("COMMAND", command),
  ]
  lines += [f"export {assign(k, v)}" for k, v in environment.items()]
  return "\n".join(lines) + _HOST


def watch_loop() -> str:
  """Goes on until the job is over, asking again for what was taken away.

  Needs NAME, BUCKET, the array AT and a function `create` before it.
  """
  return _WATCH


def slurm_script(
  name: str,
  directives: Mapping[str, str],
  python: str,
  command: Sequence[str],
  environment: Mapping[str, str],
  max_restarts: int,
) -> str:
  """A batch script for sbatch: one task per GPU, requeued after failures.

  Args:
    name: of the job.
    directives: '#SBATCH' options by name; '' for those without a value.
    python: interpreter of the environment on the nodes.
    command: verb and options.
    environment: variables of the run.
    max_restarts: after any exit code but 0, 1 and 2.
  """
  lines = ["#!/usr/bin/env bash"]
  for key, value in directives.items():
    lines.append(f"#SBATCH --{key}" + (f"={value}" if value else ""))
  lines += [
    "set -uo pipefail",
    assign("NAME", name),
    assign("PYTHON", python),
    assign("MAX_RESTARTS", str(max_restarts)),
    assign("COMMAND", command),
  ]
  lines += [f"export {assign(k, v)}" for k, v in environment.items()]
  return "\n".join(lines) + _SLURM
