# SPDX-License-Identifier: Apache-2.0
"""What MuLan is given, brought into form: what is odd is said in one line.

Waveforms of any number of channels and texts flow in, mono waveforms and ids
flow out. What says nothing at all is refused; what says little is taken, with
a warning (docs/mulan.md lists both).
"""

import logging
from collections.abc import Sequence

import numpy as np

from musiclm_jax.core import errors, vocabularies

_LOG = logging.getLogger(__name__)
# Peak of what counts as silence: -80 dB of full scale.
_SILENT_PEAK = 1e-4
_SHORT_SECS = 1.0
# More than this is no number of channels: the axes are in another order.
_MAX_CHANNELS = 64
_MANY_UNKNOWN = 0.5


def as_mono(waveform: np.ndarray, sample_rate_hz: float) -> np.ndarray:
  """Checks waveforms and averages their channels.

  Args:
    waveform: float `[batch, samples]` or `[batch, samples, channels]`.
    sample_rate_hz: their rate.

  Returns:
    float32 `[batch, samples]`.

  Raises:
    ValueError: if rank, dtype or rate is another, or there are no samples.
    UserError: if a sample is NaN or infinite; names the row.
  """
  waveform = np.asarray(waveform)
  if waveform.dtype.kind != "f":
    raise ValueError(
      f"waveform has dtype {waveform.dtype}: expected floats in [-1, 1]"
    )
  if (
    waveform.ndim not in (2, 3)
    or 0 in waveform.shape
    or (waveform.ndim == 3 and waveform.shape[2] > _MAX_CHANNELS)
  ):
    raise ValueError(
      f"waveform has shape {waveform.shape}: expected [batch, samples] or "
      f"[batch, samples, channels <= {_MAX_CHANNELS}], not empty"
    )
  if not (np.isfinite(sample_rate_hz) and sample_rate_hz > 0):
    raise ValueError(f"sample_rate_hz={sample_rate_hz}: expected > 0")
  # Found here, for a mean would spread it over the channels.
  finite = np.isfinite(waveform).all(tuple(range(1, waveform.ndim)))
  if not finite.all():
    raise errors.UserError(
      f"waveform {int(np.argmin(finite))} of the batch holds NaN or infinite "
      "samples: expected finite ones"
    )
  waveform = waveform.astype(np.float32)
  mono = waveform.mean(-1) if waveform.ndim == 3 else waveform
  secs = mono.shape[1] / sample_rate_hz
  if secs < _SHORT_SECS:
    _LOG.warning(
      "audio of %.3g s is repeated to fill a window: below %g s little music "
      "is left to hear",
      secs,
      _SHORT_SECS,
    )
  silent = np.flatnonzero(np.abs(mono).max(1) < _SILENT_PEAK)
  if silent.size:
    _LOG.warning(
      "%d of %d waveforms are silent, the first is number %d: their "
      "embeddings are those of silence and say nothing of music",
      silent.size,
      len(mono),
      silent[0],
    )
  return mono


def as_ids(
  texts: Sequence[str],
  vocabulary: vocabularies.TextVocabulary,
  text_length: int,
) -> np.ndarray:
  """Texts to int32 `[batch, text_length]`, cut, padded with 0.

  Args:
    texts: to encode.
    vocabulary: of the tower.
    text_length: ids the tower reads.

  Raises:
    UserError: if something is no text, or a text is blank; names which.
  """
  ids = np.zeros((len(texts), text_length), np.int32)
  cut, unknown = [], []
  for index, text in enumerate(texts):
    _check_text(index, text)
    ids[index] = vocabulary.encode(text, text_length)
    if not ids[index].any():
      raise errors.UserError(
        f"text {index} is {text[:60]!r}: expected at least one word"
      )
    found = vocabulary.survey(text, text_length)
    if found.num_tokens > found.num_kept:
      cut.append((index, found))
    if found.num_unknown > _MANY_UNKNOWN * found.num_kept:
      unknown.append((index, found))
  if cut:
    index, found = cut[0]
    _LOG.warning(
      "%d of %d texts are cut: of text %d (%s) the model reads %d tokens of %d",
      len(cut),
      len(texts),
      index,
      _shown(texts[index]),
      found.num_kept,
      found.num_tokens,
    )
  if unknown:
    index, found = unknown[0]
    _LOG.warning(
      "%d of %d texts are mostly unknown to the model: of text %d (%s) %d of "
      "%d tokens, which all mean the same to it",
      len(unknown),
      len(texts),
      index,
      _shown(texts[index]),
      found.num_unknown,
      found.num_kept,
    )
  return ids


def _shown(text: str) -> str:
  return repr(text[:40] + ("..." if len(text) > 40 else ""))


def _check_text(index: int, text: str) -> None:
  if not isinstance(text, str):
    raise errors.UserError(
      f"text {index} is a {type(text).__name__}: expected text"
    )
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise errors.UserError(
      f"text {index} holds bytes that are no UTF-8 (at character "
      f"{error.start}): expected text"
    ) from error
