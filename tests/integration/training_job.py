# SPDX-License-Identifier: Apache-2.0
"""A small training of several processes on loopback, for tests that break it.

`Job` starts the processes, each of which runs this file. The job is the real
loop with the real parents and checkpoints, on a stage of one layer; its data
are made-up tokens, or a token cache read by the loader. Each process notes
which rows it was fed, and `fed_rows` says what the global batches were.
"""

import argparse
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

GLOBAL_BATCH = 8
EVERY_STEPS = 10
_CLIPS = {"train": 45, "validation": 11}


# --- One process.


def make_trainable():
  """The stage that is trained: one layer, with dropout."""
  from musiclm_jax.core import stages
  from musiclm_jax.layers import transformer
  from musiclm_jax.models import token_lm

  return token_lm.TokenLM(
    token_lm.TokenLMConfig(
      spec=stages.semantic_stage(num_mulan_codebooks=2, crop_secs=0.4),
      streams=_streams(),
      transformer=transformer.TransformerConfig(
        num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, dropout_rate=0.1
      ),
    )
  )


def make_optimizer(total_steps: int):
  """Its optimizer, for a run of so many steps."""
  from musiclm_jax.training import optimizers

  return optimizers.OptimizerConfig(
    total_steps=total_steps, warmup_steps=2, learning_rate=0.01
  )


def _streams():
  from musiclm_jax.core import streams

  return (
    streams.TokenStream("mulan", 8, 2),
    streams.TokenStream("semantic", 16, 1, 25.0),
  )


def write_cache(directory: pathlib.Path) -> None:
  """A token cache of random codes, in several shards."""
  import numpy as np

  from musiclm_jax.data import token_cache, token_cache_writer

  rng = np.random.default_rng(0)
  writer = token_cache_writer.TokenCacheWriter(
    directory,
    token_cache.TokenCacheConfig(
      _streams(),
      {"mulan": "aa", "semantic": "bb"},
      mulan_window_secs=1.0,
      shard_size=8,
    ),
    rng.normal(size=(2, 8, 6)).astype(np.float32),
  )
  for split, count in _CLIPS.items():
    for shard in writer.pending(split, count):
      clips = [
        token_cache.CachedClip(
          f"{split}{number}",
          {
            "semantic": rng.integers(0, 16, (75, 1)),
            "mulan_embeddings": rng.normal(size=(3, 6)).astype(np.float32),
          },
        )
        for number in range(shard.start, shard.end)
      ]
      writer.write_shard(shard, clips)
  writer.finish(_CLIPS)


def _made_up_rows(trainable, step, part, num_parts):
  """Rows of one part: a function of step and row, whatever the parts."""
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
  rows = GLOBAL_BATCH // num_parts
  return {k: v[part * rows : (part + 1) * rows] for k, v in batch.items()}


def _made_up(trainable, part, num_parts):
  """Batches of training and of evaluation."""

  def train_batches(start):
    step = start
    while True:
      yield _made_up_rows(trainable, step, part, num_parts)
      step += 1

  def eval_batches():
    # Part 0 has a batch more than the others.
    for number in range(3 if part == 0 else 2):
      yield _made_up_rows(trainable, 10**6 + number, part, num_parts)

  return train_batches, eval_batches


def _loaded(cache_dir, trainable, part, num_parts):
  """The same by the loader from a token cache."""
  from musiclm_jax.data import loader, tasks

  config = tasks.StageTaskConfig((cache_dir,), trainable.config.spec)
  data = loader.Loader(tasks.stage_recipe(config), GLOBAL_BATCH, seed=0)
  return (
    lambda start: data.train_batches(start, part, num_parts),
    lambda: data.eval_batches(host_index=part, num_hosts=num_parts),
  )


def _noted(train_batches, folder, part, args):
  """Batches as they come, with a line per batch on what its rows hold."""
  from musiclm_jax.core import errors

  def batches(start):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{start}-{part}-{os.getpid()}.jsonl").open("w") as file:
      for step, batch in enumerate(train_batches(start), start):
        time.sleep(args.step_secs)
        if step == args.fail_at_step:
          raise errors.UserError(f"clip {step} is broken")
        marks = [hashlib.sha256() for _ in batch["example_ids"]]
        for name in sorted(batch):
          for mark, row in zip(marks, batch[name]):
            mark.update(name.encode() + row.tobytes())
        names = [mark.hexdigest()[:16] for mark in marks]
        line = {"step": step, "row": part * len(names), "hashes": names}
        file.write(json.dumps(line) + "\n")
        file.flush()
        yield batch

  return batches


def _work(args: argparse.Namespace) -> int:
  import jax
  import numpy as np
  from absl import logging

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
  model_dir = pathlib.Path(args.model_dir)
  books = ledger.Ledger(
    model_dir, distributed.is_main(), ledger.process_start()
  )
  placing = partitioner.Partitioner(mesh.MeshConfig(fsdp=args.fsdp))
  startup.announce(placing.mesh, args.config_fingerprint, {})
  agreement.check_shared(args.model_dir)
  compile_cache.enable(args.compile_cache)
  trainable = make_trainable()
  part = placing.host_part()
  if not args.cache_dir:
    data = _made_up(trainable, *part)
  else:
    data = _loaded(args.cache_dir, trainable, *part)
  state = loop.train(
    args.model_dir,
    trainable,
    _noted(data[0], model_dir / "rows", part[0], args),
    data[1],
    loop.LoopConfig(
      total_steps=args.total_steps,
      global_batch_size=GLOBAL_BATCH,
      log_every_steps=5,
      eval_every_steps=20,
      keep_best_by="heldout/loss",
      checkpointing=checkpoints.CheckpointConfig(
        every_steps=args.every_steps, keep=args.keep
      ),
    ),
    make_optimizer(args.schedule_steps or args.total_steps),
    placing,
    books=books,
    # TensorFlow takes longer to load than all of the training.
    options=loop.RunOptions(tensorboard=bool(args.cache_dir)),
  )
  leaves = jax.tree.leaves((state.params, state.optimizer))
  leaves = agreement.to_hosts(leaves)
  books.close("done", args.total_steps)
  if distributed.is_main():
    np.savez(model_dir / "final.npz", *leaves)
    print(goodput.describe(goodput.summary(args.model_dir)))
  return 0


def _main(argv: list[str]) -> int:
  from musiclm_jax.cli import cluster_arguments

  parser = argparse.ArgumentParser()
  parser.add_argument("--model_dir", required=True)
  parser.add_argument("--total_steps", type=int, required=True)
  parser.add_argument("--schedule_steps", type=int, default=0)
  parser.add_argument("--every_steps", type=int, default=EVERY_STEPS)
  parser.add_argument("--keep", type=int, default=2)
  parser.add_argument("--fsdp", type=int, default=1)
  parser.add_argument("--cache_dir", default="")
  parser.add_argument("--compile_cache", required=True)
  parser.add_argument("--config_fingerprint", default="same")
  parser.add_argument("--step_secs", type=float, default=0.02)
  parser.add_argument("--fail_at_step", type=int, default=-1)
  cluster_arguments.add_arguments(parser)
  args = parser.parse_args(argv)
  command = [sys.executable, __file__, *argv]
  return cluster_arguments.run(args, lambda: _work(args), command)


# --- All of them.


def free_port() -> int:
  """A port nobody listens on now."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


class Job:
  """The processes of one start."""

  def __init__(self, model_dir, total_steps, num_processes, log, **options):
    """Starts them.

    Args:
      model_dir: folder of the run; compiled programs are kept beside it.
      total_steps: to train in all.
      num_processes: of the job.
      log: file that gets what they print.
      **options: of this file, and: `only`, the processes to start; `each`,
        options by process; `devices`, how many one process has.
    """
    self.model_dir = pathlib.Path(model_dir)
    settings = {
      "model_dir": model_dir,
      "total_steps": total_steps,
      "compile_cache": self.model_dir.parent / "compile_cache",
      "coordinator_address": f"127.0.0.1:{free_port()}",
      "num_processes": num_processes,
      "start_timeout_secs": 120,
      "peer_timeout_secs": 30,
      **options,
    }
    only = settings.pop("only", range(num_processes))
    each = settings.pop("each", {})
    devices = settings.pop("devices", 1)
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONUNBUFFERED": "1",
      # Programs run a few times: little effort is spent on compiling them.
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
      "--xla_backend_optimization_level=0 "
      "--xla_llvm_disable_expensive_passes=true",
    }
    with pathlib.Path(log).open("ab") as out:
      self.processes = [
        subprocess.Popen(
          [
            *(sys.executable, __file__, f"--process_id={index}"),
            *(
              f"--{name}={value}"
              for name, value in {**settings, **each.get(index, {})}.items()
            ),
          ],
          stdout=out,
          stderr=subprocess.STDOUT,
          env=env,
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
    """Whether all processes have ended."""
    return all(process.poll() is not None for process in self.processes)

  def step(self) -> int:
    """Steps done, as the ledger notes them."""
    try:
      return int((self.model_dir / "ledger.progress").read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
      return 0

  def is_saving(self) -> bool:
    """Whether a checkpoint is being written."""
    return any((self.model_dir / "checkpoints").glob("*orbax-checkpoint-tmp*"))

  def children(self, index: int) -> list[int]:
    """Process ids: the process itself and those below it."""
    import psutil

    try:
      root = psutil.Process(self.processes[index].pid)
      return [root.pid, *(child.pid for child in root.children())]
    except psutil.NoSuchProcess:
      return []


def fed_rows(model_dir: pathlib.Path) -> dict[tuple[int, int], list[str]]:
  """What each row of each global batch held, as (step, row) to hashes.

  A step that was done again adds nothing unless its row was another one.
  """
  rows: dict[tuple[int, int], set[str]] = {}
  for path in (pathlib.Path(model_dir) / "rows").glob("*.jsonl"):
    for text in path.read_text().splitlines():
      try:
        line = json.loads(text)
      except json.JSONDecodeError:  # cut off by a kill
        continue
      for number, mark in enumerate(line["hashes"]):
        place = (line["step"], line["row"] + number)
        rows.setdefault(place, set()).add(mark)
  return {place: sorted(marks) for place, marks in sorted(rows.items())}


def fed_steps(model_dir: pathlib.Path) -> list[list[int]]:
  """Steps that the first part took batches for, by attempt, oldest first."""
  paths = (pathlib.Path(model_dir) / "rows").glob("*-0-*.jsonl")
  return [
    [
      json.loads(text)["step"]
      for text in path.read_text().splitlines()
      if text.endswith("}")
    ]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime)
  ]


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  sys.exit(_main(sys.argv[1:]))
