# SPDX-License-Identifier: Apache-2.0
"""VGGish, YAMNet and TRILL: SavedModels in, vectors and scores of windows out.

The networks of TF-Hub as embedders (`core/protocols.py`). Nothing here knows
TensorFlow: whoever opens the SavedModel (`data/saved_models.py`) hands it over
as a `Runner`.
"""

import csv
import io
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from musiclm_jax.audio import vggish_mel
from musiclm_jax.core import errors
from musiclm_jax.evaluation import audio_windows, published_weights

_RATE_HZ = 16000
_CLASS_MAP = "yamnet_class_map.csv"
# TRILL's context and the step of its frames, as it is published.
_TRILL_WINDOW_SECS, _TRILL_HOP_SECS = 0.975, 0.167
_TRILL_LAYER = "embedding"
# Scores this near 0 or 1 have no logit in float32.
_LEAST_SCORE = 1e-7


class Runner(Protocol):
  """An opened SavedModel.

  Attributes:
    directory: where it lies, for messages.
    fingerprint: hex hash of its files.
    inputs: by the name of an argument, its shape (None: an axis of any
      length, or a shape that is not known).
  """

  directory: Any
  fingerprint: str
  inputs: Mapping[str, tuple[int | None, ...] | None]

  def __call__(self, **arguments: Any) -> Mapping[str, np.ndarray]:
    """Answers by name, for arguments by name."""

  def asset(self, name: str) -> bytes:
    """Content of a file among its assets; UserError if it is not there."""


def _fail(runner: Runner, kind: str, found: Any, expected: str) -> None:
  raise errors.UserError(
    f"the SavedModel at {runner.directory} is no {kind}: {found}: expected "
    f"{expected}"
  )


class _Patches:
  """What VGGish and YAMNet share: windows of 0.975 s, each a row of answers."""

  def __init__(self, runner: Runner, hop_samples: int, tail: str, gain: str):
    self._runner = runner
    self._windows = audio_windows.WindowConfig(
      _RATE_HZ,
      vggish_mel.PATCH_SAMPLES,
      hop_samples,
      short_audio="zeros",
      tail=tail,
      gain=gain,
    )
    self.fingerprint = runner.fingerprint
    self.published_as = published_weights.find(runner.fingerprint)
    self.sample_rate_hz = _RATE_HZ
    self.window_secs = self._windows.window_secs
    self.hop_secs = self._windows.hop_secs

  def _input(self, kind: str) -> tuple[str, int]:
    """Name and rank of the only argument."""
    inputs = dict(self._runner.inputs)
    if len(inputs) != 1:
      _fail(self._runner, kind, f"it takes {sorted(inputs)}", "one argument")
    ((name, shape),) = inputs.items()
    return name, 1 if shape is None else len(shape)


def _hop_samples(hop_secs: float) -> int:
  """Seconds as samples at 16 kHz.

  Raises:
    ValueError: if that is less than one.
  """
  if not (np.isfinite(hop_secs) and round(hop_secs * _RATE_HZ) >= 1):
    raise ValueError(f"hop_secs={hop_secs}: expected a positive number")
  return round(hop_secs * _RATE_HZ)


class Vggish(_Patches):
  """VGGish: 128 numbers for each 0.96 s.

  A SavedModel may take waveforms (`[samples]`, as TF-Hub's vggish/1) or log-mel
  patches (`[patches, 96, 64]`, perhaps with a last axis of 1); the latter are
  made by `audio/vggish_mel.py`.
  """

  name = "vggish"
  embedding_dim = 128

  def __init__(
    self,
    runner: Runner,
    hop_secs: float = 0.96,
    tail: str = "drop",
    gain: str = "none",
  ):
    """Checks what the SavedModel takes and gives.

    Args:
      runner: the SavedModel.
      hop_secs: between the starts of two windows: 0.96 as the network has it;
        the reference code of FAD has 0.5.
      tail: of `audio_windows.TAILS`.
      gain: of `audio_windows.GAINS`; the reference code of FAD has 'peak'.

    Raises:
      ValueError: if an option has another value.
      UserError: if the SavedModel takes or gives something else.
    """
    super().__init__(runner, _hop_samples(hop_secs), tail, gain)
    self._argument, self._rank = self._input("VGGish")
    if self._rank not in (1, 3, 4):
      shape = runner.inputs[self._argument]
      _fail(
        runner, "VGGish", f"it takes {shape}", "[samples] or [patches, 96, 64]"
      )
    self._run(np.zeros((1, vggish_mel.PATCH_SAMPLES), np.float32))

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers."""
    own = self._rank == 1
    return {
      **self._windows.settings(),
      "activation": "what the SavedModel gives, no PCA, not quantized",
      "spectrogram": "the SavedModel's own" if own else "audio/vggish_mel.py",
    }

  def _run(self, windows: np.ndarray) -> np.ndarray:
    """Vectors `[windows, 128]` of windows `[windows, samples]`."""
    if self._rank == 1:
      answers = [self._runner(**{self._argument: one}) for one in windows]
    else:
      patches = vggish_mel.log_mel(windows)
      patches = patches[..., None] if self._rank == 4 else patches
      answers = [self._runner(**{self._argument: patches})]
    for answer in answers:
      shapes = {name: array.shape for name, array in answer.items()}
      rows = 1 if self._rank == 1 else len(windows)
      if list(shapes.values()) != [(rows, self.embedding_dim)]:
        _fail(
          self._runner,
          "VGGish",
          f"{rows} windows of 0.975 s give {shapes}",
          f"({rows}, {self.embedding_dim})",
        )
    found = [array for answer in answers for array in answer.values()]
    return np.concatenate(found).astype(np.float32)

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to `[batch, windows, 128]`."""
    clips = self._windows.cut(waveforms, sample_rate_hz)
    return np.stack([self._run(np.ascontiguousarray(clip)) for clip in clips])


class Yamnet(_Patches):
  """YAMNet: scores of 521 classes of AudioSet, and 1024 numbers before them.

  Attributes:
    class_names: from the SavedModel's assets.
  """

  name = "yamnet"
  multi_label = True

  def __init__(
    self,
    runner: Runner,
    hop_secs: float = 0.48,
    tail: str = "zeros",
    gain: str = "none",
  ):
    """Checks what the SavedModel takes and gives; arguments as `Vggish`.

    Raises:
      ValueError: if an option has another value.
      UserError: if the SavedModel takes or gives something else, or has no
        names of classes.
    """
    super().__init__(runner, _hop_samples(hop_secs), tail, gain)
    self._argument, rank = self._input("YAMNet")
    if rank != 1:
      shape = runner.inputs[self._argument]
      _fail(runner, "YAMNet", f"it takes {shape}", "[samples]")
    text = runner.asset(_CLASS_MAP).decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    try:
      self.class_names = tuple(row["display_name"] for row in rows)
    except KeyError as error:
      _fail(
        runner, "YAMNet", f"assets/{_CLASS_MAP} has no column {error}", "it"
      )
    silence = np.zeros((1, vggish_mel.PATCH_SAMPLES), np.float32)
    self.embedding_dim = self._run(silence)[1].shape[1]

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers."""
    return {
      **self._windows.settings(),
      "activation": "what the SavedModel gives as embeddings",
      "class_activation": "logits of its scores, which passed a sigmoid",
      "spectrogram": "the SavedModel's own",
    }

  def _run(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and vectors of windows `[windows, samples]`."""
    scores, vectors = [], []
    for one in windows:
      answer = self._runner(**{self._argument: one})
      shapes = {name: array.shape for name, array in answer.items()}
      # Scores, embeddings, spectrogram: in this order, whatever their names.
      named = [
        answer.get(name, array)
        for name, array in zip(
          ("scores", "embeddings", "log_mel_spectrogram"), answer.values()
        )
      ]
      if (
        len(named) != 3
        or named[0].shape != (1, len(self.class_names))
        or named[1].ndim != 2
        or len(named[1]) != 1
      ):
        _fail(
          self._runner,
          "YAMNet",
          f"a window of 0.975 s gives {shapes}",
          f"scores (1, {len(self.class_names)}), embeddings (1, width) and a "
          "log-mel spectrogram",
        )
      scores.append(named[0])
      vectors.append(named[1])
    return np.concatenate(scores), np.concatenate(vectors)

  def _answers(
    self, waveforms: np.ndarray, sample_rate_hz: float, index: int
  ) -> np.ndarray:
    clips = self._windows.cut(waveforms, sample_rate_hz)
    found = [self._run(np.ascontiguousarray(clip))[index] for clip in clips]
    return np.stack(found).astype(np.float32)

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to `[batch, windows, embedding_dim]`."""
    return self._answers(waveforms, sample_rate_hz, 1)

  def classify_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to logits `[batch, windows, classes]`."""
    scores = self._answers(waveforms, sample_rate_hz, 0).astype(np.float64)
    scores = np.clip(scores, _LEAST_SCORE, 1 - _LEAST_SCORE)
    return (np.log(scores) - np.log1p(-scores)).astype(np.float32)


class Trill:
  """TRILL: one vector about every 0.167 s; it cuts its own windows."""

  name = "trill"

  def __init__(self, runner: Runner, layer: str = _TRILL_LAYER):
    """Checks what the SavedModel takes and gives.

    Args:
      runner: the SavedModel.
      layer: of its answers: 'embedding', or 'layer19'.

    Raises:
      UserError: if the SavedModel takes or gives something else.
    """
    self._runner, self._layer = runner, layer
    waveforms = [name for name, shape in runner.inputs.items() if shape != ()]
    if len(waveforms) != 1:
      _fail(
        runner, "TRILL", f"it takes {sorted(runner.inputs)}", "one waveform"
      )
    self._argument = waveforms[0]
    self._rank = len(runner.inputs[self._argument] or (None,))
    self._windows = audio_windows.WindowConfig.of_secs(
      _RATE_HZ, _TRILL_WINDOW_SECS, _TRILL_HOP_SECS, short_audio="zeros"
    )
    self.fingerprint = runner.fingerprint
    self.published_as = published_weights.find(runner.fingerprint)
    self.sample_rate_hz = _RATE_HZ
    self.window_secs = self._windows.window_secs
    self.hop_secs = self._windows.hop_secs
    self.embedding_dim = self._run(np.zeros(_RATE_HZ, np.float32)).shape[1]

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers."""
    return {
      **self._windows.settings(),
      "tail": "as the SavedModel has it",
      "layer": self._layer,
      "activation": "what the SavedModel gives",
      "framing": "the SavedModel's own",
    }

  def _run(self, clip: np.ndarray) -> np.ndarray:
    """Vectors `[rows, width]` of a clip `[samples]`."""
    samples = clip[None] if self._rank == 2 else clip
    arguments = {self._argument: samples}
    if "sample_rate" in self._runner.inputs:
      arguments["sample_rate"] = _RATE_HZ
    answer = self._runner(**arguments)
    if self._layer not in answer:
      _fail(
        self._runner,
        "TRILL",
        f"it gives {sorted(answer)}",
        f"{self._layer!r}{errors.nearest(self._layer, answer)}",
      )
    found = answer[self._layer]
    found = found[0] if found.ndim == 3 and len(found) == 1 else found
    if found.ndim != 2 or 0 in found.shape:
      _fail(
        self._runner,
        "TRILL",
        f"{self._layer!r} has shape {found.shape}",
        "[rows, width]",
      )
    return found.astype(np.float32)

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to `[batch, rows, embedding_dim]`."""
    waveforms = self._windows.prepare(waveforms, sample_rate_hz)
    waveforms = self._windows.fill(waveforms)
    return np.stack([self._run(clip) for clip in waveforms])
