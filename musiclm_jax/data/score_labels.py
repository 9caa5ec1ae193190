# SPDX-License-Identifier: Apache-2.0
"""Scores behind the clips of a built demo corpus, computed when asked for.

A corpus folder flows in; per clip its notes, facts and captions flow out
(`data/score_corpus/labels.py`). They are computed from the corpus's size and
seed alone; who uses them compares the captions (`cli/probing.py`).
"""

import importlib
import json
import os
import pathlib
from typing import Any

from musiclm_jax.core import errors, progress
from musiclm_jax.data import corpora, worker_pool

_NAME = "score_corpus"


def _module(name: str) -> Any:
  directory = corpora.find_builder_dir()
  worker_pool.register_package(corpora.BUILDERS_PACKAGE, [str(directory)])
  return importlib.import_module(f"{corpora.BUILDERS_PACKAGE}.{_NAME}.{name}")


def labels_module() -> Any:
  """`data/score_corpus/labels.py`: names and windows of labels."""
  return _module("labels")


def read(corpus_dir: str | os.PathLike, num_processes: int = 0) -> dict:
  """Scores of all clips of a corpus, by id.

  Args:
    corpus_dir: folder of a built `score_corpus`.
    num_processes: parsers of scores; 0 for all cores.

  Returns:
    `labels.ClipScore` by clip id, of all splits.

  Raises:
    UserError: if it is another corpus, or of a size that is not known.
  """
  path = pathlib.Path(corpus_dir)
  if not (path / "dataset_info.json").is_file():
    raise errors.UserError(
      f"no corpus at {path}: build one with `musiclm prepare score_corpus`"
    )
  info = json.loads((path / "dataset_info.json").read_text())
  if info.get("name") != _NAME:
    raise errors.UserError(
      f"corpus at {path} is {info.get('name')!r}: expected {_NAME!r}, whose "
      "scores are known"
    )
  seed = int(json.loads((path / "metadata.json").read_text())["seed"])
  plans, works, jobs = map(_module, ("plans", "works", "jobs"))
  # Configs of other seeds than 0 are called <size>_seed<seed>.
  size = info["configName"].removesuffix(f"_seed{seed}")
  if size not in plans.SIZES:
    raise errors.UserError(
      f"corpus at {path} has configName={info['configName']!r}: expected one "
      f"of {sorted(plans.SIZES)}"
    )
  chosen = works.select_works(plans.SIZES[size].counts, seed)
  parsed: dict[int, Any] = {}
  with progress.Progress("parse scores", len(chosen), unit="score") as bar:
    for index, result in worker_pool.run(
      jobs.parse, chosen, num_processes or worker_pool.default_num_processes()
    ):
      parsed[index] = result
      bar.update()
  pieces = plans.usable_pieces([parsed[i] for i in sorted(parsed)])
  scores = labels_module().clip_scores(pieces, size, seed)
  return {score.clip_id: score for score in scores}
