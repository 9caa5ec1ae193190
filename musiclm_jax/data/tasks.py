# SPDX-License-Identifier: Apache-2.0
"""Tasks: settings in, registered seqio tasks with their converters out.

A task's name states its data recipe, so registering the same settings twice
gives the same task.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import seqio
import tensorflow as tf

from musiclm_jax.core import artifacts, stages, vocabularies
from musiclm_jax.data import (
  clip_source,
  feature_converters,
  features,
  preprocessors,
  sources,
  stage_reader,
  text_kinds,
  token_cache,
)


@dataclasses.dataclass(frozen=True)
class WaveformTaskConfig:
  """Crops of audio, for the codec and w2v-BERT.

  Attributes:
    corpus_dirs: prepared corpora.
    sample_rate_hz: rate of the crops.
    crop_secs: length of the crops.
    weights: share of each corpus; empty for one pass over all per epoch.
    peak: crops are scaled to this peak; 0 leaves them as they are
      (SoundStream sec. IV-A trains on normalised crops).
    min_gain_db: lower end of a random gain, after the peak.
    max_gain_db: upper end of a random gain; both 0 for none.
    max_ram_bytes: decoded clips kept in memory, per corpus.
    num_channels: 1 mixes what has two; 2 gives left and right, and doubles
      what has one.
    swap_channels_rate: share of crops whose two channels change places.
  """

  corpus_dirs: tuple[str, ...]
  sample_rate_hz: int
  crop_secs: float
  weights: tuple[float, ...] = ()
  peak: float = 0.0
  min_gain_db: float = 0.0
  max_gain_db: float = 0.0
  max_ram_bytes: int = 1 << 28
  num_channels: int = 1
  swap_channels_rate: float = 0.0

  def __post_init__(self):
    object.__setattr__(self, "corpus_dirs", _names(self.corpus_dirs))
    object.__setattr__(self, "weights", tuple(self.weights))
    for field in ("sample_rate_hz", "crop_secs"):
      if not getattr(self, field) > 0:
        raise ValueError(f"{field}={getattr(self, field)}: expected > 0")
    if not 0 <= self.peak <= 1:
      raise ValueError(f"peak={self.peak}: expected in [0, 1], 0 for none")
    if self.num_channels not in (1, 2):
      raise ValueError(f"num_channels={self.num_channels}: expected 1 or 2")
    if not 0 <= self.swap_channels_rate <= self.num_channels - 1:
      raise ValueError(
        f"swap_channels_rate={self.swap_channels_rate}: expected in [0, 1], "
        f"and 0 where there is one channel"
      )
    if self.min_gain_db > self.max_gain_db:
      raise ValueError(
        f"min_gain_db={self.min_gain_db}: expected at most max_gain_db="
        f"{self.max_gain_db}"
      )

  @property
  def num_crop_samples(self) -> int:
    return round(self.crop_secs * self.sample_rate_hz)


@dataclasses.dataclass(frozen=True)
class CaptionTaskConfig:
  """Crops of audio with a text each, for MuLan.

  Attributes:
    waveform: the audio side.
    text_model: path of a text vocabulary (`core/vocabularies.py`).
    text_length: text tokens per example.
    text_weights: how often a text is of which kind, by name (`text_kinds`),
      such as {'caption': 2.0, 'aspects': 1.0}; empty for captions alone.
    allow_no_text: whether clips may have no text. Their rows are no pairs
      (`models/contrastive.py`), and make the others' negatives fewer.
  """

  waveform: WaveformTaskConfig
  text_model: str
  text_length: int = 64
  text_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  allow_no_text: bool = False

  def __post_init__(self):
    if self.text_length < 1:
      raise ValueError(f"text_length={self.text_length}: expected >= 1")
    if self.text_weights:
      text_kinds.check_weights(self.text_weights)
    if self.waveform.num_channels != 1:
      raise ValueError(
        f"waveform.num_channels={self.waveform.num_channels}: expected 1, for "
        "MuLan hears mono"
      )


@dataclasses.dataclass(frozen=True)
class StageTaskConfig:
  """Token sequences of one stage.

  Attributes:
    cache_dirs: token caches of the same tokenizers.
    spec: the stage; its `crop_secs` is the length of the crops.
    weights: share of each cache; empty for one pass over all per epoch.
    num_packed: examples that share a row, for clips that are shorter than the
      crop; the trainable must be told (`TokenLMConfig.packed`).
  """

  cache_dirs: tuple[str, ...]
  spec: stages.StageSpec
  weights: tuple[float, ...] = ()
  num_packed: int = 1

  def __post_init__(self):
    object.__setattr__(self, "cache_dirs", _names(self.cache_dirs))
    object.__setattr__(self, "weights", tuple(self.weights))


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A task with what turns it into batches; what `loader.Loader` takes.

  Attributes:
    task: registered in `seqio.TaskRegistry`.
    converter: task features to model inputs.
    feature_lengths: lengths of the task features.
    reader: makes the same batches without tf.data, much faster; or None.
  """

  task: seqio.Task
  converter: seqio.FeatureConverter
  feature_lengths: Mapping[str, int]
  reader: stage_reader.StageReader | None = None


def _names(directories: str | Sequence[str]) -> tuple[str, ...]:
  if isinstance(directories, str):
    directories = (directories,)
  return tuple(str(directory) for directory in directories)


def _mark(config: object, directories: Sequence[str], info_name: str) -> str:
  """Hash of settings and of the data they name, for the end of a name."""
  digest = hashlib.sha256(repr(config).encode())
  for directory in directories:
    info = pathlib.Path(directory).absolute() / info_name
    digest.update(str(info).encode())
    digest.update(info.read_bytes() if info.is_file() else b"")
  return digest.hexdigest()[:8]


def _corpus_names(directories: Sequence[str]) -> str:
  """Folder names, without the version folders of TFDS."""
  names = []
  for directory in directories:
    path = pathlib.Path(directory).absolute()
    is_version = re.fullmatch(r"[0-9.]+", path.name)
    names.append(path.parent.name if is_version else path.name)
  return "_".join(names)


def _number(value: float) -> str:
  return f"{value:g}".replace(".", "p").replace("-", "m").replace("+", "")


def _audio_name(config: WaveformTaskConfig) -> str:
  """Settings that differ from the default, in words."""
  parts = [
    _corpus_names(config.corpus_dirs),
    f"{config.sample_rate_hz}hz",
    f"{_number(config.crop_secs)}secs",
  ]
  if config.num_channels > 1:
    parts.append(f"{config.num_channels}channels")
  if config.peak:
    parts.append(f"peak{_number(config.peak)}")
  if config.min_gain_db or config.max_gain_db:
    gains = _number(config.min_gain_db), _number(config.max_gain_db)
    parts.append("gain{}to{}".format(*gains))
  return "_".join(parts)


def _register(name: str, make_task: Callable[[str], seqio.Task]) -> seqio.Task:
  """The task called `name`, made and registered at the first call."""
  allowed = [c if c.isalnum() or c in "_.:" else "_" for c in name]
  name = "".join(c if c.isascii() else "_" for c in allowed)
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add_provider(name, make_task(name))
  return seqio.TaskRegistry.get(name)


def _task(
  name: str,
  source: seqio.DataSource,
  preprocessors: Sequence[Callable[..., tf.data.Dataset]],
  output_features: Mapping[str, seqio.Feature],
) -> seqio.Task:
  """A task that never shuffles: the source gives the order."""
  return seqio.Task(
    name,
    source=source,
    preprocessors=preprocessors,
    output_features=output_features,
    shuffle_buffer_size=None,
  )


def register(
  kind: str,
  config: object,
  corpus_dirs: Sequence[str],
  make_source: Callable[[], seqio.DataSource],
  preprocessors: Sequence[Callable[..., tf.data.Dataset]],
  output_features: Mapping[str, seqio.Feature],
) -> seqio.Task:
  """A task of another module, registered at the first call.

  Args:
    kind: first word of its name.
    config: its settings, by which it is known.
    corpus_dirs: prepared corpora it reads.
    make_source: its source.
    preprocessors: its steps.
    output_features: what they give.
  """
  mark = _mark(config, corpus_dirs, clip_source.CORPUS_INFO)
  return _register(
    f"{kind}_{_corpus_names(corpus_dirs)}_{mark}",
    lambda name: _task(name, make_source(), preprocessors, output_features),
  )


def _audio_steps(config: WaveformTaskConfig) -> list:
  steps = [
    functools.partial(
      preprocessors.crop_waveform, num_samples=config.num_crop_samples
    )
  ]
  if config.swap_channels_rate:
    steps.append(
      functools.partial(
        preprocessors.swap_channels, rate=config.swap_channels_rate
      )
    )
  if config.peak:
    steps.append(
      functools.partial(preprocessors.normalize_peak, peak=config.peak)
    )
  if config.min_gain_db or config.max_gain_db:
    steps.append(
      functools.partial(
        preprocessors.random_gain,
        min_db=config.min_gain_db,
        max_db=config.max_gain_db,
      )
    )
  return steps


def _audio_features(num_channels: int = 1) -> dict[str, seqio.Feature]:
  rank = len(features.waveform_shape(None, num_channels))
  return {
    "waveform": features.continuous(rank, tf.float32),
    "num_samples": features.continuous(0, tf.int32),
    **features.bookkeeping_features(),
  }


def _lengths(config: WaveformTaskConfig) -> dict[str, int]:
  # Scalars have no length; seqio wants an entry for each feature.
  lengths = dict.fromkeys(_audio_features(), 1)
  return {**lengths, "waveform": config.num_crop_samples}


def waveform_recipe(config: WaveformTaskConfig) -> Recipe:
  """Batches of `waveform` float32 `[batch, samples]` and `num_samples`.

  With two channels `waveform` is `[batch, samples, 2]`, left and right.

  Raises:
    UserError: if a corpus is missing.
  """

  def make_task(name: str) -> seqio.Task:
    source = clip_source.ClipSource(
      config.corpus_dirs,
      config.sample_rate_hz,
      config.weights,
      max_ram_bytes=config.max_ram_bytes,
      num_channels=config.num_channels,
    )
    return _task(
      name,
      source=source,
      preprocessors=_audio_steps(config),
      output_features=_audio_features(config.num_channels),
    )

  mark = _mark(config, config.corpus_dirs, clip_source.CORPUS_INFO)
  task = _register(f"waveform_{_audio_name(config)}_{mark}", make_task)
  converter = feature_converters.WaveformConverter(config.num_channels)
  return Recipe(task, converter, _lengths(config))


def caption_recipe(config: CaptionTaskConfig) -> Recipe:
  """Batches of `waveform` and `text_tokens` int32 `[batch, text_length]`.

  Text tokens are all 0 where a clip has no text.

  Raises:
    UserError: if a corpus or the text model is missing.
  """
  audio = config.waveform
  vocabulary = vocabularies.load(config.text_model)
  # Captions alone are drawn as they were before there were other kinds.
  is_plain = not config.text_weights and not config.allow_no_text
  weights = text_kinds.check_weights(config.text_weights or {"caption": 1.0})

  def make_task(name: str) -> seqio.Task:
    source = clip_source.ClipSource(
      audio.corpus_dirs,
      audio.sample_rate_hz,
      audio.weights,
      needs_captions=not config.allow_no_text,
      max_ram_bytes=audio.max_ram_bytes,
      kinds=[kind for kind, _ in weights],
      all_texts=not is_plain,
    )
    tokenize = functools.partial(
      preprocessors.tokenize_caption
      if is_plain
      else functools.partial(text_kinds.tokenize_drawn, weights=weights),
      vocabulary=vocabulary,
      text_length=config.text_length,
    )
    return _task(
      name,
      source=source,
      preprocessors=[*_audio_steps(audio), tokenize],
      output_features={
        **_audio_features(),
        "text_tokens": features.text(vocabulary.num_tokens),
      },
    )

  mark = _mark(config, audio.corpus_dirs, clip_source.CORPUS_INFO)
  mark += artifacts.fingerprint("text", {}, {}, vocabulary.files)[:8]
  name = f"caption_{_audio_name(audio)}_text{config.text_length}_{mark}"
  task = _register(name, make_task)
  lengths = {**_lengths(audio), "text_tokens": config.text_length}
  return Recipe(task, feature_converters.CaptionConverter(), lengths)


def stage_recipe(config: StageTaskConfig) -> Recipe:
  """Batches of `decoder_*` features `[batch, length]` of one stage.

  Raises:
    UserError: if a cache is missing, unfinished, or made by other tokenizers
      than the first.
  """
  reader = token_cache.TokenCacheReader(config.cache_dirs[0])
  layout = stages.StageLayout(config.spec, reader.config.streams_by_name())
  cropper = preprocessors.StageCropper(
    layout, reader.config, reader.mulan_codebooks
  )

  def make_task(name: str) -> seqio.Task:
    source = sources.CacheSource(
      config.cache_dirs, cropper.stream_names, config.weights
    )
    step = functools.partial(preprocessors.crop_codes, cropper=cropper)
    return _task(
      name,
      source=source,
      preprocessors=[step],
      output_features={
        **{
          stream: features.continuous(2, tf.int32)
          for stream in cropper.stream_names
        },
        **features.bookkeeping_features(),
      },
    )

  spec = config.spec
  mark = _mark(config, config.cache_dirs, token_cache.CONFIG_NAME)
  corpora = _corpus_names(config.cache_dirs)
  name = f"stage_{spec.name}_{corpora}_{_number(spec.crop_secs)}secs_{mark}"
  task = _register(name, make_task)
  lengths = {
    segment.stream: layout.segment_frames(index)
    for index, segment in enumerate(spec.segments)
  }
  lengths.update(dict.fromkeys(features.bookkeeping_features(), 1))
  converter = feature_converters.StageConverter(layout, config.num_packed)
  reader = None  # Packed rows are made by tf.data.
  if config.num_packed == 1:
    reader = stage_reader.StageReader(task.source, cropper, converter)
  return Recipe(task, converter, lengths, reader)
