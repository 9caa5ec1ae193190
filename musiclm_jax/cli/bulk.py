# SPDX-License-Identifier: Apache-2.0
"""Many prompts to a folder of files, by one process or several.

Each item is claimed before it is begun (`shard_claims`) and appears with its
sidecar. Who finds all items done writes the manifest.
"""

import collections
import contextlib
import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from musiclm_jax.cli import generated_files, jobs, sigterm
from musiclm_jax.core import atomic_files, errors, progress
from musiclm_jax.data import shard_claims
from musiclm_jax.systems import (
  candidates,
  cascade,
  continuous_batching,
  provenance,
  stage_windows,
)

MANIFEST = "manifest.jsonl"
_CLAIMS = ".claims"
_POLL_SECS = 0.5
_WAIT_NOTE_SECS = 30.0

Item = generated_files.Item
Settings = Mapping[Item, Mapping[str, Any]]


def batch_sizes(
  job: jobs.GenerateJob,
  system: cascade.Cascade,
  items: Sequence[Item],
  num_devices: int,
) -> tuple[int, int]:
  """Rows of the stages that go on window by window, and of the others.

  The same for all processes of a job and after each restart, so that the
  programs are; and no larger than the job can fill.
  """
  total = len(items) * job.num_candidates
  num_batches = -(-total // job.batch_size)
  size = _whole(-(-total // num_batches), num_devices)
  windows = 1
  for name, stage in system.stages.items():
    if cascade.is_parallel(name):
      longest = cascade.whole_secs(max(item.seconds for item in items))
      frames = stage.target_stream.num_frames(longest)
      windows = -(-frames // stage.window_frames)
  most = max(size, stage_windows.MAX_ROWS)
  return size, min(size * windows, most // num_devices * num_devices)


def _whole(size: int, divisor: int) -> int:
  return math.ceil(size / divisor) * divisor


class _Bulk:
  """One process of a bulk job."""

  def __init__(
    self,
    job: jobs.GenerateJob,
    system: cascade.Cascade,
    request: Callable[[Item, Sequence[int]], cascade.Request],
    items: Sequence[Item],
    settings: Settings,
    num_devices: int,
  ):
    self._job, self._system, self._request = job, system, request
    self._items, self._settings = items, settings
    self._folder = pathlib.Path(job.output_dir)
    sizes = batch_sizes(job, system, items, num_devices)
    self.batcher = continuous_batching.Batcher(system, *sizes)
    self._kept: dict[Item, list[candidates.Candidate]] = (
      collections.defaultdict(list)
    )
    self._num_made: dict[Item, int] = collections.Counter()

  def _is_done(self, item: Item) -> bool:
    return generated_files.is_done(item, self._settings[item])

  def run(self) -> None:
    """Makes what is missing, alone or among others."""
    # What was seen done stays so: two jobs that disagree both come to an end.
    pending = [item for item in self._items if not self._is_done(item)]
    total = len(self._items)
    # A folder that cannot be written to is known before anything is made.
    with (
      sigterm.raises("SIGTERM: finished files are kept"),
      shard_claims.Claims(
        self._folder / _CLAIMS, self._job.stale_secs
      ) as claims,
      progress.Progress("generate", total, total - len(pending), "clip") as bar,
    ):
      atomic_files.remove_abandoned(self._folder, self._job.stale_secs)
      last_note = time.monotonic()
      while pending:
        num_made = self._work(pending, claims, bar)
        left = [item for item in pending if not self._is_done(item)]
        if len(left) + num_made < len(pending):  # others made the rest
          bar.update(len(pending) - len(left) - num_made)
        pending = left
        if not pending or num_made:
          continue
        if time.monotonic() - last_note > _WAIT_NOTE_SECS:
          last_note = time.monotonic()
          print(f"waiting for {len(pending)} items of others", flush=True)
        time.sleep(_POLL_SECS)
    write_manifest(self._folder, self._items, self._settings)
    shutil.rmtree(self._folder / _CLAIMS, ignore_errors=True)

  def _claimed(
    self, pending: Sequence[Item], claims: shard_claims.Claims
  ) -> Iterator[tuple[Any, Callable[[], cascade.Request]]]:
    """Candidates of the items that become ours, as they are asked for."""
    for item in pending:
      if not claims.claim(item.name):
        continue
      if self._is_done(item):  # finished just before we claimed it
        claims.release(item.name)
        continue
      for index in range(self._job.num_candidates):
        seed = candidates.candidate_seed(item.seed, index)
        yield (
          (item, index),
          lambda item=item, seed=seed: self._request(item, [seed]),
        )

  def _work(self, pending, claims, bar) -> int:
    """Makes those of `pending` that nobody else has; their number."""
    num_made = 0
    made = self.batcher.run(self._claimed(pending, claims))
    with contextlib.closing(made):
      for (item, index), generation in made:
        self._keep(item, index, generation)
        if self._num_made[item] < self._job.num_candidates:
          continue
        del self._num_made[item]
        rate_hz = generation.sample_rate_hz
        for path, kept in zip(item.paths, self._kept.pop(item)):
          generated_files.write(
            path, kept, rate_hz, item.label, self._settings[item]
          )
        claims.release(item.name)
        num_made += 1
        bar.update()
    return num_made

  def _keep(self, item: Item, index: int, made: cascade.Generation) -> None:
    score = None
    if self._system.mulan is not None and item.prompt is not None:
      score = float(
        candidates.score(
          self._system.mulan,
          [item.prompt],
          made.waveform,
          made.sample_rate_hz,
        )[0]
      )
    found = candidates.Candidate(
      made.waveform[0], {}, made.seeds[0], index, score
    )
    kept = [*self._kept[item], found]
    self._kept[item] = candidates.best(kept, self._job.keep)
    self._num_made[item] += 1


def write_manifest(
  folder: pathlib.Path, items: Sequence[Item], settings: Settings
) -> None:
  """Writes a line for each file, in the order of the items.

  Raises:
    UserError: if a file was made with other settings meanwhile.
  """
  lines = []
  for item in items:
    for path in item.paths:
      found = provenance.read_sidecar(path)
      if found is None or not generated_files.is_done(item, settings[item]):
        raise errors.UserError(
          f"{path} was made anew with other settings while this job ran: give "
          "each job a folder of its own"
        )
      candidate = found.pop("candidate", {})
      record = {
        "file": path.name,
        "score": candidate.get("mulan_score"),
        "candidate_seed": candidate.get("seed", item.seed),
        **found,
      }
      lines.append(json.dumps(record) + "\n")
  with atomic_files.written(folder / MANIFEST) as file:
    file.write("".join(lines).encode())


def generate(
  job: jobs.GenerateJob,
  system: cascade.Cascade,
  request: Callable[[Item, Sequence[int]], cascade.Request],
  items: Sequence[Item],
  settings: Settings,
  num_devices: int = 1,
) -> None:
  """Makes the files of a job that are not there yet, and the manifest.

  Args:
    job: with `output_dir`.
    system: what makes them.
    request: what `system.run` makes of an item, for seeds.
    items: all of the job.
    settings: of each item.
    num_devices: that rows are split over (`cascade.Cascade.spread`).

  Raises:
    UserError: if an item cannot be made.
    Preempted: on SIGTERM; finished files stay.
  """
  _Bulk(job, system, request, items, settings, num_devices).run()
