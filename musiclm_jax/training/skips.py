# SPDX-License-Identifier: Apache-2.0
"""Batches that a rollback left out, so that a resume leaves them out too.

Training reads the stream without them: step `s` (from 0) takes the `s`-th
batch that was not left out.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from musiclm_jax.core import atomic_files
from musiclm_jax.training import agreement, distributed

FILE_NAME = "skipped_batches.json"


def read(model_dir: str | os.PathLike) -> list[dict[str, Any]]:
  """Left-out batches of a run, as process 0 reads them, in order."""
  path = pathlib.Path(model_dir) / FILE_NAME
  text = "[]"
  if distributed.is_main() and path.is_file():
    text = path.read_text()
  return json.loads(agreement.from_main("skips", text))


def add(model_dir: str | os.PathLike, batch: int, reason: str) -> None:
  """Records that batch `batch` of the stream is left out from now on."""
  records = read(model_dir)
  records.append({"batch": batch, "reason": reason})
  records.sort(key=lambda record: record["batch"])
  if distributed.is_main():
    path = pathlib.Path(model_dir) / FILE_NAME
    atomic_files.write_text(path, json.dumps(records, indent=2) + "\n")
  agreement.barrier("skips")


def batch_at(step: int, skipped: list[int]) -> int:
  """Position in the stream of the batch that step `step` takes."""
  batch = step
  for left_out in sorted(skipped):
    if left_out <= batch:
      batch += 1
  return batch


def without(
  batches: Callable[[int], Iterator[Any]], skipped: list[int], step: int
) -> Iterator[Any]:
  """The batches from step `step` on, without those left out.

  Args:
    batches: from a position, an endless iterator of batches.
    skipped: positions left out.
    step: the first step.
  """
  position = batch_at(step, skipped)
  source = iter(batches(position))
  left_out = set(skipped)
  try:
    for batch in source:
      if position not in left_out:
        yield batch
      position += 1
  finally:
    if hasattr(source, "close"):
      source.close()
