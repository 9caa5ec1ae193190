# SPDX-License-Identifier: Apache-2.0
"""Kills a job of several processes again and again, and compares its end.

  python tests/integration/kill_rounds.py --rounds=20 --seed=0 --workdir=DIR

An unbroken run comes first. Then the same run is started `rounds` times and
killed at a seeded moment: SIGTERM or SIGKILL, at one process or all, at some
step, in the middle of a save, or while it starts. The last start runs to the
end. It prints a line per round and a verdict, and exits with 1 if the final
states differ, a checkpoint cannot be read, or a process left with a code that
does not fit.

The job is the real loop, with the real parents and checkpoints, on a stage of
one layer and made-up tokens; only the reading of data is left out.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

GLOBAL_BATCH = 8
EVERY_STEPS = 10


# --- One process of the job.


def _trainable():
  from musiclm_jax.core import stages, streams
  from musiclm_jax.layers import transformer
  from musiclm_jax.models import token_lm

  return token_lm.TokenLM(
    token_lm.TokenLMConfig(
      spec=stages.semantic_stage(num_mulan_codebooks=2, crop_secs=0.4),
      streams=(
        streams.TokenStream("mulan", 8, 2),
        streams.TokenStream("semantic", 16, 1, 25.0),
      ),
      transformer=transformer.TransformerConfig(
        num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, dropout_rate=0.1
      ),
    )
  )


def _rows(trainable, step, index, count):
  """Rows of one process: a function of step and row, whatever the count."""
  import numpy as np

  rng = np.random.default_rng(step)
  batch = {
    name: rng.integers(2, 9, shape.shape).astype(shape.dtype)
    for name, shape in trainable.input_shapes(GLOBAL_BATCH).items()
  }
  layout = trainable.config.layout
  tail = batch["decoder_target_tokens"][:, layout.target_start :]
  tail[:] = int(layout.target_offsets[0]) + tail % 16
  batch["decoder_loss_weights"][:] = 1.0
  batch["decoder_loss_weights"][:, : layout.target_start] = 0
  batch["example_ids"] = np.arange(GLOBAL_BATCH) + 100 * step
  rows = GLOBAL_BATCH // count
  return {k: v[index * rows : (index + 1) * rows] for k, v in batch.items()}


def _optimizer(total_steps):
  from musiclm_jax.training import optimizers

  return optimizers.OptimizerConfig(
    total_steps=total_steps, warmup_steps=2, learning_rate=0.01
  )


def _work(args: argparse.Namespace) -> int:
  import jax
  import numpy as np
  from absl import logging

  from musiclm_jax.core import errors
  from musiclm_jax.partitioning import mesh, partitioner
  from musiclm_jax.training import (
    agreement,
    checkpoints,
    compile_cache,
    distributed,
    goodput,
    ledger,
    loop,
    startup,
  )

  logging.set_verbosity(logging.INFO)
  books = ledger.Ledger(
    args.model_dir, distributed.is_main(), ledger.process_start()
  )
  index, count = jax.process_index(), jax.process_count()
  part = partitioner.Partitioner(mesh.MeshConfig())
  startup.announce(part.mesh, args.config_fingerprint, {})
  agreement.check_shared(args.model_dir)
  compile_cache.enable(args.compile_cache)
  trainable = _trainable()

  def train_batches(start):
    step = start
    while True:
      time.sleep(args.step_secs)
      if step == args.fail_at_step:
        raise errors.UserError(f"clip {step} is broken")
      yield _rows(trainable, step, index, count)
      step += 1

  def eval_batches():
    # Process 0 has a batch more than the others.
    for number in range(3 if index == 0 else 2):
      yield _rows(trainable, 10**6 + number, index, count)

  state = loop.train(
    args.model_dir,
    trainable,
    train_batches,
    eval_batches,
    loop.LoopConfig(
      total_steps=args.total_steps,
      global_batch_size=GLOBAL_BATCH,
      log_every_steps=5,
      eval_every_steps=20,
      checkpointing=checkpoints.CheckpointConfig(every_steps=EVERY_STEPS),
    ),
    _optimizer(args.total_steps),
    part,
    books=books,
  )
  leaves = jax.tree.leaves((state.params, state.optimizer))
  leaves = agreement.to_hosts(leaves)
  books.close("done", args.total_steps)
  if distributed.is_main():
    np.savez(pathlib.Path(args.model_dir) / "final.npz", *leaves)
    print(goodput.describe(goodput.summary(args.model_dir)))
  return 0


def _worker_main(argv: list[str]) -> int:
  from musiclm_jax.cli import cluster_arguments

  parser = argparse.ArgumentParser()
  parser.add_argument("--model_dir", required=True)
  parser.add_argument("--total_steps", type=int, required=True)
  parser.add_argument("--compile_cache", required=True)
  parser.add_argument("--config_fingerprint", default="same")
  parser.add_argument("--step_secs", type=float, default=0.02)
  parser.add_argument("--fail_at_step", type=int, default=-1)
  cluster_arguments.add_arguments(parser)
  args = parser.parse_args(argv)
  command = [sys.executable, __file__, "worker", *argv]
  return cluster_arguments.run(args, lambda: _work(args), command)


# --- The killer.


def free_port() -> int:
  """A port nobody listens on now."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


class Job:
  """The processes of one start."""

  def __init__(self, model_dir, total_steps, num_processes, log, **options):
    self.model_dir = pathlib.Path(model_dir)
    port = free_port()
    settings = {
      "model_dir": model_dir,
      "total_steps": total_steps,
      "compile_cache": self.model_dir.parent / "compile_cache",
      "coordinator_address": f"127.0.0.1:{port}",
      "num_processes": num_processes,
      "start_timeout_secs": 120,
      "peer_timeout_secs": 30,
      **options,
    }
    only = settings.pop("only", range(num_processes))
    each = settings.pop("each", {})
    with pathlib.Path(log).open("ab") as out:
      self.processes = [
        subprocess.Popen(
          [
            *(sys.executable, __file__, "worker", f"--process_id={index}"),
            *(
              f"--{name}={value}"
              for name, value in {**settings, **each.get(index, {})}.items()
            ),
          ],
          stdout=out,
          stderr=subprocess.STDOUT,
          env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
        )
        for index in only
      ]

  def wait(self, timeout_secs: float = 900) -> list[int]:
    """Exit codes; kills what outlives the time."""
    deadline = time.monotonic() + timeout_secs
    codes = []
    for process in self.processes:
      try:
        codes.append(process.wait(max(1.0, deadline - time.monotonic())))
      except subprocess.TimeoutExpired:
        process.kill()
        codes.append(None)
    return codes

  def is_over(self) -> bool:
    return all(process.poll() is not None for process in self.processes)

  def step(self) -> int:
    """Steps done, as the ledger notes them."""
    try:
      return int((self.model_dir / "ledger.progress").read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
      return 0

  def is_saving(self) -> bool:
    return any((self.model_dir / "checkpoints").glob("*orbax-checkpoint-tmp*"))

  def children(self, index: int) -> list[int]:
    """The process itself and those below it."""
    import psutil

    try:
      root = psutil.Process(self.processes[index].pid)
      return [root.pid, *(child.pid for child in root.children())]
    except psutil.NoSuchProcess:
      return []


def _wait_for_moment(job: Job, moment: str, rng: random.Random) -> None:
  begin = job.step()
  target = begin + rng.randint(1, 2 * EVERY_STEPS)
  deadline = time.monotonic() + 600
  delay = rng.uniform(0.5, 12.0)
  if moment == "start":
    time.sleep(delay)
    return
  while not job.is_over() and time.monotonic() < deadline:
    if moment == "step" and job.step() >= target:
      return
    # A save after at least one step of this start.
    if moment == "save" and job.step() > begin and job.is_saving():
      return
    time.sleep(0.004)


def kill_round(job: Job, rng: random.Random) -> tuple[str, list[int]]:
  """Kills a job at a random moment; what was done, and the exit codes."""
  moment = rng.choice(["step", "step", "save", "save", "start"])
  number = rng.choice([signal.SIGKILL, signal.SIGTERM])
  victims = rng.choice([[0], [1], [0, 1]])
  through_parent = rng.random() < 0.5
  _wait_for_moment(job, moment, rng)
  step = job.step()
  for index in victims:
    pids = job.children(index)
    if not pids:
      continue
    # A launcher signals the parent; the kernel may take either.
    pid = pids[0] if number == signal.SIGTERM or through_parent else pids[-1]
    try:
      os.kill(pid, number)
    except ProcessLookupError:
      continue
  what = f"{number.name} at {victims} in {moment}, step {step}"
  return what, job.wait()


def fits(what: str, codes: list[int]) -> bool:
  """Whether the exit codes are what a launcher needs to see."""
  if all(code == 0 for code in codes):  # it was done first
    return True
  allowed = {42, -signal.SIGKILL} if "SIGKILL" in what else {143}
  if "SIGTERM" in what and "in start" in what:
    # Before the processes have met, the others only learn of it by silence;
    # before it has a handler, a process just ends (143 to a shell).
    allowed |= {42, -signal.SIGTERM}
  return all(code in allowed for code in codes)


def same_arrays(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether two .npz files hold the same bits."""
  import numpy as np

  left, right = np.load(a), np.load(b)
  return left.files == right.files and all(
    left[name].dtype == right[name].dtype
    and left[name].tobytes() == right[name].tobytes()
    for name in left.files
  )


def unreadable(model_dir: pathlib.Path) -> list[str]:
  """Checkpoints that cannot be read, were set aside or never finished."""
  import jax

  from musiclm_jax.partitioning import mesh, partitioner
  from musiclm_jax.training import checkpoints, optimizers, state

  abstract, _ = state.create(
    _trainable(),
    optimizers.make_optimizer(_optimizer(1)),
    partitioner.Partitioner(mesh.MeshConfig(data=1), jax.devices()[:1]),
    GLOBAL_BATCH,
    seed=0,
    abstract=True,
  )
  folder = model_dir / "checkpoints"
  bad = [path.name for path in model_dir.glob("damaged_*")]
  bad += [path.name for path in folder.iterdir() if not path.name.isdigit()]
  checkpointer = checkpoints.Checkpointer(
    model_dir, checkpoints.CheckpointConfig()
  )
  for step in checkpointer.steps():
    if checkpointer.try_restore(step, abstract) is None:
      bad.append(str(step))
  checkpointer.close()
  return bad


def run(workdir, rounds, seed, total_steps, num_processes=2) -> dict:
  """Both runs and their comparison; see the module."""
  workdir, rng = pathlib.Path(workdir), random.Random(seed)
  workdir.mkdir(parents=True, exist_ok=True)
  log = workdir / "log.txt"
  whole = Job(workdir / "whole", total_steps, num_processes, log)
  result = {"whole": whole.wait(), "rounds": [], "misfits": 0}
  print("unbroken:", result["whole"], flush=True)
  model_dir = workdir / "killed"
  for number in range(rounds):
    job = Job(model_dir, total_steps, num_processes, log)
    what, codes = kill_round(job, rng)
    result["rounds"].append([what, codes])
    result["misfits"] += not fits(what, codes)
    print(f"{number + 1}: {what}: {codes}", flush=True)
  last = Job(model_dir, total_steps, num_processes, log)
  result["last"] = last.wait()
  result["unreadable"] = unreadable(model_dir)
  result["same"] = result["last"] == result["whole"] and same_arrays(
    workdir / "whole" / "final.npz", model_dir / "final.npz"
  )
  return result


def main(argv: list[str] | None = None) -> int:
  """Entry point."""
  argv = sys.argv[1:] if argv is None else argv
  if argv[:1] == ["worker"]:
    return _worker_main(argv[1:])
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--total_steps", type=int, default=240)
  args = parser.parse_args(argv)
  result = run(args.workdir, args.rounds, args.seed, args.total_steps)
  print(json.dumps(result, indent=2))
  good = result["same"] and not result["unreadable"] and not result["misfits"]
  print("PASS" if good else "FAIL")
  return 0 if good else 1


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  sys.exit(main())
