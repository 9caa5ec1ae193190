# SPDX-License-Identifier: Apache-2.0
"""Kills a job of several processes again and again, and compares its end.

  python tests/integration/kill_rounds.py --rounds=20 --seed=0 --workdir=DIR

An unbroken run comes first. Then the same run is started `rounds` times and
killed at a seeded moment: SIGTERM or SIGKILL, at one process or all, at some
step, in the middle of a save, or while it starts. The last start runs to the
end. It prints a line per round and a verdict, and exits with 1 if the final
states, the batches or the best checkpoint differ, a checkpoint cannot be read,
or a process left with a code that does not fit.

The job is that of `training_job.py`, with a token cache read by the loader.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import time

import training_job


def _wait_for_moment(
  job: training_job.Job, moment: str, rng: random.Random
) -> None:
  begin = job.step()
  target = begin + rng.randint(1, 2 * training_job.EVERY_STEPS)
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


def kill_round(
  job: training_job.Job, rng: random.Random
) -> tuple[str, list[int]]:
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
    training_job.make_trainable(),
    optimizers.make_optimizer(training_job.make_optimizer(1)),
    partitioner.Partitioner(mesh.MeshConfig(data=1), jax.devices()[:1]),
    training_job.GLOBAL_BATCH,
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


def run(
  workdir: pathlib.Path,
  rounds: int,
  seed: int,
  total_steps: int,
  num_processes: int = 2,
  load: bool = False,
) -> dict:
  """Both runs and their comparison; see the module.

  Args:
    workdir: gets the folders of both runs and `log.txt`.
    rounds: kills.
    seed: of the moments.
    total_steps: of each run.
    num_processes: of each start.
    load: whether the loader reads a token cache, in place of made-up tokens.
  """
  workdir, rng = pathlib.Path(workdir), random.Random(seed)
  workdir.mkdir(parents=True, exist_ok=True)
  log, options = workdir / "log.txt", {}
  if load:
    options["cache_dir"] = workdir / "cache"
    training_job.write_cache(workdir / "cache")

  def start(name):
    return training_job.Job(
      workdir / name, total_steps, num_processes, log, **options
    )

  began = time.monotonic()
  result = {"whole": start("whole").wait(), "rounds": [], "misfits": 0}
  print("unbroken:", result["whole"], flush=True)
  for number in range(rounds):
    what, codes = kill_round(start("killed"), rng)
    result["rounds"].append([what, codes])
    result["misfits"] += not fits(what, codes)
    print(f"{number + 1}: {what}: {codes}", flush=True)
  result["last"] = start("killed").wait()
  result["secs"] = round(time.monotonic() - began)
  result["unreadable"] = unreadable(workdir / "killed")
  rows = training_job.fed_rows(workdir / "whole")
  result["rows"] = len(rows)
  result["same_batches"] = rows == training_job.fed_rows(workdir / "killed")
  result["same"] = result["last"] == result["whole"] and same_arrays(
    workdir / "whole" / "final.npz", workdir / "killed" / "final.npz"
  )
  result["same_best"] = _best(workdir / "whole") == _best(workdir / "killed")
  return result


def _best(model_dir: pathlib.Path) -> list:
  """The best checkpoint of a run, which must be there."""
  from musiclm_jax.training import best

  steps = [int(path.name) for path in (model_dir / "checkpoints").iterdir()]
  found = best.find(model_dir, steps)
  return [found.step, found.value, sorted(steps)]


def main(argv: list[str] | None = None) -> int:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--total_steps", type=int, default=240)
  args = parser.parse_args(argv)
  result = run(
    args.workdir, args.rounds, args.seed, args.total_steps, load=True
  )
  print(json.dumps(result, indent=2))
  good = result["same"] and result["same_batches"] and result["same_best"]
  good = good and not result["unreadable"] and not result["misfits"]
  print("PASS" if good else "FAIL")
  return 0 if good else 1


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  sys.exit(main())
