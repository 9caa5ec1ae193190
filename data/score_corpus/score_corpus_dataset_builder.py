# SPDX-License-Identifier: Apache-2.0
"""TFDS builder of the demo corpus: scores, rendered and captioned.

Nothing flows in but what pip installed (music21's scores, pretty_midi's
SoundFont); clips of encoded audio with captions flow out, split by work.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from musiclm_jax.core import progress
from musiclm_jax.data import corpora, worker_pool

from . import jobs, plans, works

_DESCRIPTION = """\
Public-domain scores (Bach chorales, fiddle tunes, folk songs, Joplin, Haydn and
Mozart movements) in seeded arrangements for 16 and more General MIDI
instruments, rendered at 24 kHz, with captions made from the facts of each
arrangement. Splits are by melody.
"""


@dataclasses.dataclass
class ScoreCorpusConfig(tfds.core.BuilderConfig):
  """Which corpus, and how it is built.

  Attributes:
    size: key of `plans.SIZES`; the config's name if empty.
    seed: of works, splits and arrangements.
    share: of the works and clips of the size, to try a build out.
    use_beam: hand parsing and rendering to Apache Beam. Does not change the
      corpus.
  """

  size: str = ""
  seed: int = 0
  share: float = 1.0
  use_beam: bool = False

  def __post_init__(self):
    self.size = self.size or self.name
    plans.get_size(self.size, self.share)


class Builder(tfds.core.GeneratorBasedBuilder):
  """Demo corpus `score_corpus`."""

  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES = {
    "1.0.0": "First release.",
    "1.1.0": "Instruments are in tune; scores, splits, captions are the same.",
  }
  builder_config_cls = ScoreCorpusConfig
  BUILDER_CONFIGS = [
    ScoreCorpusConfig(name="tiny", description="33 minutes in train."),
    ScoreCorpusConfig(name="small", description="10 hours in train."),
  ]

  def __init__(
    self,
    *,
    file_format: Any = "array_record",
    num_processes: int = 0,
    **kwargs: Any,
  ):
    """Sets up the builder.

    Args:
      file_format: array_record is what random access needs.
      num_processes: parsers and renderers; 0 means all cores. Does not change
        the corpus.
      **kwargs: of every TFDS builder.
    """
    self._num_processes = num_processes or worker_pool.default_num_processes()
    super().__init__(file_format=file_format or "array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=corpora.clip_features(),
      description=_DESCRIPTION,
      metadata=tfds.core.MetadataDict(seed=self.builder_config.seed),
      disable_shuffling=False,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing is downloaded.
    config = self.builder_config
    if config.use_beam:
      # Under the name that workers elsewhere can import.
      pipeline = corpora.load_beam_pipeline("score_corpus")
      return pipeline.split_transforms(config.size, config.seed, config.share)
    size = plans.get_size(config.size, config.share)
    pieces = self._parse(works.select_works(size.counts, config.seed))
    by_id = {piece.work_id: piece for piece in pieces}
    all_jobs: dict[str, list] = {split: [] for split in plans.SPLITS}
    for plan in plans.make_plans(pieces, size, config.seed):
      all_jobs[plan.split].append((by_id[plan.work_id], plan))
    return {
      split: self._generate_examples(split, split_jobs)
      for split, split_jobs in all_jobs.items()
    }

  def _parse(self, chosen: list[works.Work]) -> list[works.Piece]:
    parsed: dict[int, works.Piece | str] = {}
    with progress.Progress("parse scores", len(chosen), unit="score") as bar:
      for index, result in worker_pool.run(
        jobs.parse, chosen, self._num_processes
      ):
        parsed[index] = result
        bar.update()
    return plans.usable_pieces([parsed[i] for i in sorted(parsed)])

  def _generate_examples(
    self, split: str, split_jobs: list
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    with progress.Progress(
      f"render {split}", len(split_jobs), unit="clip"
    ) as bar:
      for _, example in worker_pool.run(
        jobs.make_clip, split_jobs, self._num_processes
      ):
        yield example["id"], example
        bar.update()
