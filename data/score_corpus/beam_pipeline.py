# SPDX-License-Identifier: Apache-2.0
"""The same corpus by Apache Beam: scores flow in, clips by split flow out.

    works -> pieces -> one plan of all clips -> jobs of a split -> clips

Imported only where Beam is wanted, and under the package name
`musiclm_jax_builders`, which is installed where workers run.
"""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from . import jobs, plans, works


def split_transforms(
  size: str, seed: int, share: float = 1.0
) -> dict[str, beam.PTransform]:
  """One transform per split; scores are parsed once for all of them.

  Args:
    size: a key of `plans.SIZES`.
    seed: of works, splits and arrangements.
    share: of the size.

  Returns:
    By split, a transform from a pipeline to (id, example).
  """
  corpus = _Corpus(plans.get_size(size, share), seed)
  return {split: _Split(corpus, split) for split in plans.SPLITS}


class _Split(beam.PTransform):
  """Clips of one split."""

  def __init__(self, corpus: "_Corpus", split: str):
    super().__init__()
    self._corpus, self._split = corpus, split

  def expand(self, begin: Any) -> Any:
    return (
      self._corpus.jobs(begin.pipeline)
      | "OfSplit" >> beam.Filter(_is_of, self._split)
      # Or one worker renders what it planned.
      | "SpreadJobs" >> beam.Reshuffle()
      | "Render" >> beam.Map(_keyed_clip)
    )


class _Corpus:
  """The part of the graph that all splits share; made once per pipeline."""

  def __init__(self, size: plans.SizeSpec, seed: int):
    self._size, self._seed = size, seed
    self._made: dict[int, Any] = {}

  def jobs(self, pipeline: beam.Pipeline) -> Any:
    """(piece, plan) of every clip."""
    if id(pipeline) not in self._made:
      chosen = works.select_works(self._size.counts, self._seed)
      parsed = (
        pipeline
        | "Works" >> beam.Create(list(enumerate(chosen)))
        | "SpreadWorks" >> beam.Reshuffle()
        | "Parse" >> beam.MapTuple(_parse)
      )
      self._made[id(pipeline)] = (
        pipeline
        | "Once" >> beam.Create([None])
        | "Plan"
        >> beam.FlatMap(
          _make_plans,
          size=self._size,
          seed=self._seed,
          parsed=beam.pvalue.AsList(parsed),
        )
      )
    return self._made[id(pipeline)]


def _parse(index: int, work: works.Work) -> tuple[int, works.Piece | str]:
  return index, jobs.parse(work)


def _make_plans(
  unused: None,
  size: plans.SizeSpec,
  seed: int,
  parsed: list[tuple[int, works.Piece | str]],
) -> Iterator[tuple[works.Piece, plans.Plan]]:
  """All plans by one worker: they are dealt from common decks."""
  del unused
  in_order = dict(parsed)
  pieces = plans.usable_pieces([in_order[i] for i in sorted(in_order)])
  by_id = {piece.work_id: piece for piece in pieces}
  for plan in plans.make_plans(pieces, size, seed):
    yield by_id[plan.work_id], plan


def _is_of(job: tuple[works.Piece, plans.Plan], split: str) -> bool:
  return job[1].split == split


def _keyed_clip(
  job: tuple[works.Piece, plans.Plan],
) -> tuple[str, dict[str, Any]]:
  example = jobs.make_clip(job)
  return example["id"], example
