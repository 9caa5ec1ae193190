# SPDX-License-Identifier: Apache-2.0
"""Clips of the same melody side by side: for the melody embedder.

A corpus `melody_pairs` has versions of each melody: other instruments, tempi,
a hum. Any other corpus has one clip of each, and its versions are the clip's
own, detuned, shifted, in noise and rooms (self-supervised). Corpora flow in;
batches of `waveform` and `melody_ids` flow out, in which each melody occurs
`num_versions` times. Resumes as all recipes do (`data/melody_order.py`).
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.audio import perturb
from musiclm_jax.core import errors
from musiclm_jax.data import (
  clip_source,
  feature_converters,
  features,
  melody_order,
  tasks,
)

_METADATA = "metadata.json"
_GROUP_SEED, _ROW_SEED = "group_seed", features.CROP_SEED
_SPEC = seqio.FeatureConverter.FeatureSpec


@dataclasses.dataclass(frozen=True)
class MelodyTaskConfig:
  """Crops of audio, several of each melody.

  Attributes:
    corpus_dirs: prepared corpora; of kind `melody_pairs`, or any others.
    sample_rate_hz: rate of the crops.
    crop_secs: length of the crops.
    num_versions: crops of each melody in a global batch, which should be a
      multiple of it.
    key_invariant: versions in other keys count as the same melody; else they
      are not read.
    weights: share of each corpus; empty for one pass over all per epoch.
    group_semitones: all crops of a melody are moved by the same interval, up
      to this, in speed and pitch: more melodies out of few.
    augment: of each crop by itself; None changes nothing.
    max_ram_bytes: decoded clips kept in memory, per corpus.
  """

  corpus_dirs: tuple[str, ...]
  sample_rate_hz: int
  crop_secs: float = 4.0
  num_versions: int = 4
  key_invariant: bool = False
  weights: tuple[float, ...] = ()
  group_semitones: float = 3.0
  augment: perturb.PerturbConfig | None = perturb.PerturbConfig()
  max_ram_bytes: int = 1 << 30

  def __post_init__(self):
    directories = self.corpus_dirs
    if isinstance(directories, (str, os.PathLike)):
      directories = (directories,)
    directories = tuple(str(directory) for directory in directories)
    object.__setattr__(self, "corpus_dirs", directories)
    object.__setattr__(self, "weights", tuple(self.weights))
    for field in ("sample_rate_hz", "crop_secs"):
      if not getattr(self, field) > 0:
        raise ValueError(f"{field}={getattr(self, field)}: expected > 0")
    if self.num_versions < 2:
      raise ValueError(f"num_versions={self.num_versions}: expected >= 2")
    if not 0 <= self.group_semitones <= 6:
      raise ValueError(
        f"group_semitones={self.group_semitones}: expected in [0, 6]"
      )


@dataclasses.dataclass(frozen=True)
class Versions:
  """How the versions of melodies lie in a split of a corpus.

  Attributes:
    stored: clips of each melody, side by side; 1 in other corpora.
    in_key: how many of them, from the first on, are in one key.
    max_tempo_ratio: largest tempo over the middle one, and inverse smallest.
  """

  stored: int = 1
  in_key: int = 1
  max_tempo_ratio: float = 1.0


def read_versions(corpus_dir: str | os.PathLike, split: str) -> Versions:
  """Versions of a split, from the corpus's metadata.

  Raises:
    UserError: if the metadata is damaged.
  """
  path = pathlib.Path(corpus_dir) / _METADATA
  if not path.is_file():
    return Versions()
  try:
    found = json.loads(path.read_text())
    if "versions_per_melody" not in found:
      return Versions()
    return Versions(
      int(found["versions_per_melody"][split]),
      int(found["versions_in_key"][split]),
      float(found["max_tempo_ratio"]),
    )
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(f"damaged {path}: {error!r}") from error


class _Rows:
  """The versions of one split that are wanted, as rows."""

  def __init__(
    self, clips: Any, versions: Versions, wanted: int, num_rows: int
  ):
    self.clips, self.versions = clips, versions
    self._wanted, self.num_rows = wanted, num_rows
    self.num_melodies = len(clips) // versions.stored

  def __len__(self) -> int:
    return self.num_melodies * self.num_rows

  def record(self, row: int) -> int:
    """Index of the clip behind a row."""
    melody, version = divmod(row, self.num_rows)
    return melody * self.versions.stored + version % self._wanted


class MelodySource(clip_source.ClipSource):
  """Clips in groups of one melody.

  Features: `waveform`, `tempo_ratio`, `max_tempo_ratio`, `melody_ids` and
  `group_seed`, which the crops of a melody share.
  """

  def __init__(self, config: MelodyTaskConfig, num_threads: int = 2):
    """Opens corpora.

    Args:
      config: which, and how.
      num_threads: reader threads.
    """
    self._config = config
    super().__init__(
      config.corpus_dirs,
      config.sample_rate_hz,
      config.weights,
      max_ram_bytes=config.max_ram_bytes,
      num_threads=num_threads,
    )
    scalar = tf.TensorSpec([], tf.float32)
    self._signature = {
      "waveform": self._signature["waveform"],
      "tempo_ratio": scalar,
      "max_tempo_ratio": scalar,
      "melody_ids": tf.TensorSpec([], tf.int32),
      _GROUP_SEED: tf.TensorSpec([], tf.int64),
    }

  def open_records(self, directory: str, split: str) -> _Rows:
    clips = super().open_records(directory, split)
    versions = read_versions(directory, split)
    if len(clips) % versions.stored:
      raise errors.UserError(
        f"split {split!r} of {directory} has {len(clips)} clips: expected a "
        f"multiple of its {versions.stored} versions per melody"
      )
    wanted = versions.in_key
    if self._config.key_invariant:
      wanted = versions.stored
    # A clip without versions stands for as many as are asked for.
    rows = wanted if wanted > 1 else self._config.num_versions
    return _Rows(clips, versions, wanted, rows)

  def order(
    self, split: str, seed: int, shuffle: bool
  ) -> melody_order.MelodyOrder:
    """Which version is read at which position of a run."""
    return melody_order.MelodyOrder(
      [
        melody_order.MelodyCounts(rows.num_melodies, rows.num_rows)
        for rows in self.records(split)
      ],
      seed,
      self._config.num_versions,
      self._weights,
      shuffle,
    )

  def read(self, records: _Rows, index: int) -> dict[str, np.ndarray]:
    record = records.record(index)
    samples, _ = records.clips.get(record, self._sample_rate_hz, 1)
    ratio = 1.0
    if records.versions.stored > 1:
      ratio = records.clips.number(record, "tempo_ratio")
    return {
      "waveform": samples.astype(np.float32) / np.float32(32768.0),
      "tempo_ratio": np.float32(ratio),
      "max_tempo_ratio": np.float32(records.versions.max_tempo_ratio),
    }

  def drawn(
    self, order: melody_order.MelodyOrder, k: int
  ) -> dict[str, np.ndarray]:
    return {
      "melody_ids": np.int32(order.melody(order.position(k))),
      _GROUP_SEED: np.int64(order.group_seed(k)),
    }

  def describe(self, split: str, position: int) -> str:
    """Names the clip at `position` by its id."""
    order = self.order(split, 0, False)
    corpus, row = order.corpus_of(position)
    rows = self.records(split)[corpus]
    name = rows.clips.clip_id(rows.record(row))
    return f"clip {name!r} of {self.directories[corpus]}"


def crop_version(
  waveform: np.ndarray,
  tempo_ratio: float,
  max_tempo_ratio: float,
  group_seed: int,
  row_seed: Sequence[int],
  config: MelodyTaskConfig,
) -> np.ndarray:
  """The part of a clip around a point of its score, as a crop for training.

  Args:
    waveform: float32 `[samples]`; second t is second `t * tempo_ratio` of the
      score.
    tempo_ratio: of this version.
    max_tempo_ratio: of any version: the point is so far from both ends that
      no version lacks music around it.
    group_seed: gives the point and the interval to move by.
    row_seed: int `[2]`, gives the changes to this crop.
    config: lengths and changes.

  Returns:
    float32 `[crop samples]` in [-1, 1].
  """
  shared = np.random.Generator(np.random.Philox(group_seed))
  semitones = shared.uniform(-config.group_semitones, config.group_semitones)
  speed, jitter_secs = 2.0 ** (semitones / 12), 0.0
  place = shared.random()
  own = np.random.Generator(np.random.Philox(_as_seed(row_seed)))
  own_speed = 1.0
  if config.augment is not None:
    jitter_secs = own.normal(0.0, config.augment.jitter_secs)
    own_speed = 2.0 ** (own.normal(0.0, config.augment.detune_cents) / 1200)
  centre_secs = centre_of(
    len(waveform) / config.sample_rate_hz,
    tempo_ratio,
    0.5 * config.crop_secs * speed * max_tempo_ratio,
    place,
  )
  crop = crop_around(
    waveform,
    config.sample_rate_hz,
    centre_secs + jitter_secs,
    config.crop_secs,
    speed * own_speed,
  )
  if config.augment is not None:
    crop = perturb.perturb(crop, config.sample_rate_hz, config.augment, own)
  return crop


def centre_of(
  secs: float, tempo_ratio: float, reach_secs: float, place: float
) -> float:
  """Where in a version a point of the score lies.

  Args:
    secs: length of the version.
    tempo_ratio: of the version.
    reach_secs: seconds of score that the point stays away from both ends.
    place: of the point, from 0, as early as that, to 1, as late.

  Returns:
    Seconds from the start of the version.
  """
  # All versions last as long in the score, but for a sample.
  score_secs = np.floor(secs * tempo_ratio * 100) / 100
  room_secs = max(score_secs - 2 * reach_secs, 0.0)
  return (0.5 * (score_secs - room_secs) + place * room_secs) / tempo_ratio


def crop_around(
  waveform: np.ndarray,
  sample_rate_hz: int,
  centre_secs: float,
  secs: float,
  speed: float = 1.0,
) -> np.ndarray:
  """A crop around a point; near the ends it is moved to lie inside.

  Args:
    waveform: float32 `[samples]`.
    sample_rate_hz: its rate.
    centre_secs: the point.
    secs: length of the crop as it is heard.
    speed: see `perturb.excerpt`.

  Returns:
    float32 `[round(secs * sample_rate_hz)]`.
  """
  num_samples = round(secs * sample_rate_hz)
  first = centre_secs * sample_rate_hz - 0.5 * num_samples * speed
  first = min(first, len(waveform) - num_samples * speed)
  return perturb.excerpt(waveform, max(first, 0.0), num_samples, speed)


def _as_seed(seed: Sequence[int]) -> int:
  return int(seed[0]) << 31 | int(seed[1])


class MelodyConverter(feature_converters.WaveformConverter):
  """`waveform` and `melody_ids`."""

  TASK_FEATURES = {
    "waveform": _SPEC(dtype=tf.float32),
    "melody_ids": _SPEC(dtype=tf.int32, rank=0),
    features.EXAMPLE_IDS: _SPEC(dtype=tf.int64, rank=0),
    features.EXAMPLE_WEIGHTS: _SPEC(dtype=tf.float32, rank=0),
  }
  MODEL_FEATURES = TASK_FEATURES


def melody_recipe(config: MelodyTaskConfig) -> tasks.Recipe:
  """Batches of `waveform` float32 `[batch, samples]` and `melody_ids` int32.

  Rows `[i * num_versions, (i + 1) * num_versions)` of a global batch of
  training have the same id. Evaluation reads all versions of one melody after
  the other.

  Raises:
    UserError: if a corpus is missing or its metadata damaged.
  """
  num_samples = round(config.crop_secs * config.sample_rate_hz)

  def crop(waveform, ratio, max_ratio, group_seed, row_seed):
    return crop_version(
      waveform, ratio, max_ratio, int(group_seed), row_seed, config
    )

  @seqio.map_over_dataset
  def crop_example(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    inputs = ("waveform", "tempo_ratio", "max_tempo_ratio")
    inputs += (_GROUP_SEED, _ROW_SEED)
    waveform = tf.numpy_function(
      crop, [example[name] for name in inputs], tf.float32
    )
    waveform.set_shape([num_samples])
    return {**example, "waveform": waveform}

  output_features = {
    "waveform": features.continuous(1, tf.float32),
    "melody_ids": features.continuous(0, tf.int32),
    **features.bookkeeping_features(),
  }
  task = tasks.register(
    "melody",
    config,
    config.corpus_dirs,
    lambda: MelodySource(config),
    [crop_example],
    output_features,
  )
  lengths = {**dict.fromkeys(output_features, 1), "waveform": num_samples}
  return tasks.Recipe(task, MelodyConverter(), lengths)
