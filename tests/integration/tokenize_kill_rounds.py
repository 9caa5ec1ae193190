# SPDX-License-Identifier: Apache-2.0
"""Kills a tokenize job of several processes again and again; compares caches.

  python tests/integration/tokenize_kill_rounds.py --workdir=DIR \\
    --corpus_dir=CORPUS --artifact_dir=ARTIFACTS --rounds=10

One process first makes a cache without being disturbed. Then two processes
share another, one with one device and one with two, and are killed `rounds`
times at seeded moments: SIGKILL or SIGTERM, at one of them or both, while they
start, between two shards or in the middle of one. Killed processes are started
again; in the end both run until all is done. It prints a line per round and a
verdict, and exits with 1 unless both caches are the same, file by file and bit
by bit, and every clip is in them once.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What tells of a run, and not of the cache.
_NOT_CACHE = ("reports",)
_DEADLINE_SECS = 3600


class Job:
  """Processes that share one output folder."""

  def __init__(self, output_dir, options, num_processes, log):
    self.output_dir = pathlib.Path(output_dir)
    self._options, self._log = list(options), pathlib.Path(log)
    self.processes = [self._start(index) for index in range(num_processes)]

  def _start(self, index):
    # Odd processes split their batches over two devices.
    flags = f"--xla_force_host_platform_device_count={1 + index % 2}"
    with self._log.open("ab") as out:
      return subprocess.Popen(
        [
          *(sys.executable, "-m", "musiclm_jax.cli.main", "tokenize"),
          *(f"--output_dir={self.output_dir}", *self._options),
        ],
        stdout=out,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={
          **os.environ,
          "JAX_PLATFORMS": "cpu",
          "XLA_FLAGS": flags,
          "PYTHONUNBUFFERED": "1",
        },
      )

  def restart(self) -> None:
    """Starts again what is gone."""
    for index, process in enumerate(self.processes):
      if process.poll() is not None:
        self.processes[index] = self._start(index)

  def kill(self, index: int, number: int) -> int | None:
    """Signals a process and waits for its end; its exit code."""
    process = self.processes[index]
    process.send_signal(number)
    return process.wait(_DEADLINE_SECS)

  def wait(self) -> list[int]:
    """Exit codes of all processes."""
    return [process.wait(_DEADLINE_SECS) for process in self.processes]

  def num_done(self) -> int:
    """Shards written so far."""
    return len(list(self.output_dir.glob("*.done.json")))

  def num_writing(self) -> int:
    """Files that are being written."""
    return len(list(self.output_dir.glob("*.writing")))

  def is_over(self) -> bool:
    return all(process.poll() is not None for process in self.processes)


def _wait_for_moment(job: Job, moment: str, rng: random.Random) -> None:
  begin, deadline = job.num_done(), time.monotonic() + _DEADLINE_SECS
  delay = rng.uniform(0.0, 4.0)
  if moment == "start":
    time.sleep(delay)
    return
  while not job.is_over() and time.monotonic() < deadline:
    if moment == "shard" and job.num_done() > begin:
      time.sleep(delay / 40)
      return
    if moment == "write" and job.num_writing():
      return
    time.sleep(0.002)


def kill_round(job: Job, rng: random.Random) -> str:
  """Kills at a random moment; what was done and with what exit codes."""
  moment = rng.choice(["shard", "shard", "write", "start"])
  number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
  victims = rng.choice([[0], [1], [0, 1]])
  _wait_for_moment(job, moment, rng)
  done = job.num_done()
  codes = [job.kill(index, number) for index in victims]
  return f"{number.name} at {victims} in {moment}, {done} shards done: {codes}"


def content(directory) -> dict[str, bytes]:
  """Bytes of all files of a cache."""
  directory = pathlib.Path(directory)
  return {
    path.relative_to(directory).as_posix(): path.read_bytes()
    for path in sorted(directory.rglob("*"))
    if path.is_file() and path.relative_to(directory).parts[0] not in _NOT_CACHE
  }


def differences(one, other) -> list[str]:
  """Files that only one folder has, or whose bytes differ."""
  left, right = content(one), content(other)
  names = sorted(set(left) | set(right))
  return [name for name in names if left.get(name) != right.get(name)]


def num_doubled_or_lost(cache_dir) -> int:
  """Inputs that are not in the cache or its list of skipped ones just once."""
  sys.path[:0] = [str(ROOT)]
  from musiclm_jax.data import token_cache, token_manifest

  path = pathlib.Path(cache_dir) / token_manifest.MANIFEST_NAME
  manifest = json.loads(path.read_text())
  reader = token_cache.TokenCacheReader(cache_dir)
  wrong = 0
  for split, told in manifest["splits"].items():
    ids = [clip.clip_id for clip in reader[split]] + list(told["skipped"])
    wrong += len(ids) - len(set(ids)) + abs(told["num_inputs"] - len(ids))
  return wrong


def run(workdir, options, rounds, seed, num_processes=2) -> dict:
  """Both caches and their comparison; see the module."""
  workdir, rng = pathlib.Path(workdir), random.Random(seed)
  workdir.mkdir(parents=True, exist_ok=True)
  options = [*options, f"--compile_cache={workdir / 'compiled'}"]
  log = workdir / "log.txt"
  whole = Job(workdir / "whole", options, 1, log)
  result = {"whole": whole.wait(), "rounds": []}
  print("unbroken:", result["whole"], flush=True)
  job = Job(workdir / "killed", options, num_processes, log)
  for number in range(rounds):
    result["rounds"].append(kill_round(job, rng))
    print(f"{number + 1}: {result['rounds'][-1]}", flush=True)
    job.restart()
  result["last"] = job.wait()
  result["differences"] = differences(whole.output_dir, job.output_dir)
  result["num_doubled_or_lost"] = num_doubled_or_lost(job.output_dir)
  result["good"] = (
    result["whole"] == [0]
    and result["last"] == [0] * num_processes
    and not result["differences"]
    and not result["num_doubled_or_lost"]
  )
  return result


def main(argv: list[str] | None = None) -> int:
  """Entry point; options that are not its own go to `musiclm tokenize`."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  args, options = parser.parse_known_args(argv)
  result = run(args.workdir, options, args.rounds, args.seed)
  print(json.dumps(result, indent=2))
  print("PASS" if result["good"] else "FAIL")
  return 0 if result["good"] else 1


if __name__ == "__main__":
  sys.exit(main())
