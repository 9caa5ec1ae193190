# SPDX-License-Identifier: Apache-2.0
"""TFDS builder of melodies in many versions, from the demo corpus's scores.

Nothing flows in but what pip installed; clips of encoded audio flow out, in
order: the versions of a work stand side by side, as many for every work of a
split. `musiclm_jax/data/melody_pairs.py` reads them by that arithmetic.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from musiclm_jax.core import progress
from musiclm_jax.data import corpora, worker_pool

# By the name under which worker processes find them, also in `tfds build`.
jobs = corpora.load_builder_part("melody_pairs", "jobs")
versions = corpora.load_builder_part("melody_pairs", "versions")
_scores = {
  name: corpora.load_builder_part("score_corpus", name)
  for name in ("jobs", "plans", "works")
}

_DESCRIPTION = """\
Melodies of public-domain scores, each played by many instruments, hummed and
whistled, in other octaves, keys and tempi, alone and accompanied. Splits are
those of score_corpus of the same size and seed.
"""


@dataclasses.dataclass
class MelodyPairsConfig(tfds.core.BuilderConfig):
  """Which corpus.

  Attributes:
    size: key of `versions.SIZES`; the config's name if empty.
    seed: of works, splits and versions.
    share: of the works of the size, to try a build out.
  """

  size: str = ""
  seed: int = 0
  share: float = 1.0

  def __post_init__(self):
    self.size = self.size or self.name
    versions.get_size(self.size)


class Builder(tfds.core.GeneratorBasedBuilder):
  """Corpus `melody_pairs`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  builder_config_cls = MelodyPairsConfig
  BUILDER_CONFIGS = [
    MelodyPairsConfig(name="tiny", description="165 works in train."),
    MelodyPairsConfig(name="small", description="816 works in train."),
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
    features = {
      **corpora.clip_features(),
      "transformation": tfds.features.Text(),
      "semitones": tfds.features.Scalar(dtype=np.int32),
      "tempo_ratio": tfds.features.Scalar(dtype=np.float32),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      description=_DESCRIPTION,
      metadata=tfds.core.MetadataDict(
        seed=self.builder_config.seed,
        versions_per_melody=versions.NUM_VERSIONS,
        versions_in_key=versions.NUM_SAME_KEY,
        max_tempo_ratio=versions.MAX_TEMPO_RATIO,
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing is downloaded.
    config, plans = self.builder_config, _scores["plans"]
    spec = versions.get_size(config.size)
    size = plans.get_size(spec.score_size, config.share)
    chosen = _scores["works"].select_works(size.counts, config.seed)
    parsed = list(self._in_order("parse scores", _scores["jobs"].parse, chosen))
    pieces = plans.usable_pieces(parsed)
    by_id = {piece.work_id: piece for piece in pieces}
    splits: dict[str, list] = {split: [] for split in plans.SPLITS}
    for version in versions.make_versions(
      pieces, config.size, config.seed, config.share
    ):
      splits[version.split].append((by_id[version.work_id], version))
    return {
      split: self._generate_examples(split, split_jobs)
      for split, split_jobs in splits.items()
    }

  def _in_order(self, name: str, function: Any, items: list) -> Iterator[Any]:
    """Results of worker processes, those that come early held back."""
    early: dict[int, Any] = {}
    wanted = 0
    with progress.Progress(name, len(items), unit="item") as bar:
      for index, result in worker_pool.run(
        function, items, self._num_processes
      ):
        early[index] = result
        bar.update()
        while wanted in early:
          yield early.pop(wanted)
          wanted += 1

  def _generate_examples(
    self, split: str, split_jobs: list
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    clips = self._in_order(f"render {split}", jobs.make_clip, split_jobs)
    yield from enumerate(clips)
