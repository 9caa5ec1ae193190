# SPDX-License-Identifier: Apache-2.0
"""Text embeddings in, where audio embeddings lie out: narrows MuLan's gap.

The two towers fill two different cones of the sphere, and the RVQ is fitted on
audio. A mapper moves a text embedding towards the audio before it is
quantized. It is affine, fitted in closed form on pairs, and brought to unit
length again. No paper has it; MusicLM quantizes text embeddings as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax.core import errors

KINDS = ("none", "shift", "ridge")
_FOLDS = 5
# Shares of the texts' mean variance.
_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MIN_PAIRS = 10


def unit(vectors: np.ndarray) -> np.ndarray:
  """Rows at length one; zeros stay zeros."""
  norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(norm, 1e-12)


class TextMapper:
  """`unit(text @ kernel + bias)`; without a kernel, a shift.

  Attributes:
    bias: float32 `[dim]`.
    kernel: float32 `[dim, dim]` or None.
  """

  def __init__(self, bias: np.ndarray, kernel: np.ndarray | None = None):
    """Checks the shapes.

    Raises:
      ValueError: if they do not fit or hold NaN or infinity.
    """
    self.bias = np.asarray(bias, np.float32)
    self.kernel = None if kernel is None else np.asarray(kernel, np.float32)
    if self.bias.ndim != 1:
      raise ValueError(f"bias has shape {self.bias.shape}: expected [dim]")
    expected = (len(self.bias),) * 2
    if self.kernel is not None and self.kernel.shape != expected:
      raise ValueError(
        f"kernel has shape {self.kernel.shape}: expected {expected}"
      )
    if not all(np.isfinite(a).all() for a in self.to_arrays().values()):
      raise ValueError(
        "a mapper holds NaN or infinity: expected finite numbers"
      )

  def __call__(self, embeddings: np.ndarray) -> np.ndarray:
    """Text embeddings `[..., dim]` to float32 `[..., dim]` of unit length."""
    moved = np.asarray(embeddings, np.float32)
    if self.kernel is not None:
      moved = moved @ self.kernel
    return unit(moved + self.bias).astype(np.float32)

  def to_arrays(self) -> dict[str, np.ndarray]:
    """As it is stored in an artefact."""
    arrays = {"bias": self.bias}
    return arrays if self.kernel is None else {**arrays, "kernel": self.kernel}

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, Any]) -> "TextMapper":
    """The inverse of `to_arrays`."""
    return cls(arrays["bias"], arrays.get("kernel"))


def check_kind(kind: str) -> None:
  """Raises ValueError for anything but 'none', 'shift' and 'ridge'."""
  if kind not in KINDS:
    raise ValueError(f"text_mapper={kind!r}: expected one of {KINDS}")


def _ridge(text: np.ndarray, audio: np.ndarray, strength: float) -> TextMapper:
  """Least squares, drawn towards the shift: `kernel` to the identity."""
  text_mean, audio_mean = text.mean(0), audio.mean(0)
  text, audio = text - text_mean, audio - audio_mean
  covariance = text.T @ text / len(text)
  dim = len(text_mean)
  penalty = strength * max(np.trace(covariance) / dim, 1e-12)
  kernel = np.eye(dim) + np.linalg.solve(
    covariance + penalty * np.eye(dim), text.T @ (audio - text) / len(text)
  )
  return TextMapper(audio_mean - text_mean @ kernel, kernel)


def _choose(text: np.ndarray, audio: np.ndarray, groups: np.ndarray) -> float:
  """The strength whose mappers do best on groups they were not fitted on."""
  _, numbers = np.unique(groups, return_inverse=True)
  folds = numbers % min(_FOLDS, numbers.max() + 1)
  if folds.max() == 0:
    return _STRENGTHS[-1]  # One group says nothing about another.
  scores = []
  for strength in _STRENGTHS:
    cosines = np.concatenate(
      [
        (
          _ridge(text[folds != fold], audio[folds != fold], strength)(
            text[folds == fold]
          )
          * audio[folds == fold]
        ).sum(-1)
        for fold in range(folds.max() + 1)
      ]
    )
    scores.append(cosines.mean())
  return _STRENGTHS[int(np.argmax(scores))]


def fit(
  kind: str,
  text: np.ndarray,
  audio: np.ndarray,
  groups: np.ndarray,
  strength: float = 0.0,
) -> tuple[TextMapper | None, dict[str, Any]]:
  """Fits a mapper to pairs, in closed form.

  'shift' adds the difference of the two means. 'ridge' is least squares from
  text to audio with a penalty on what the kernel differs from the identity:
  no penalty is plain regression, a large one is the shift.

  Args:
    kind: 'none', 'shift' or 'ridge'.
    text: float `[pairs, dim]`, unit length.
    audio: float `[pairs, dim]`, unit length; row i belongs to text i.
    groups: `[pairs]`, the work of each pair: pairs of a work are together in
      one fold of the cross-validation.
    strength: the penalty of 'ridge', as a multiple of the mean variance of a
      dimension of the texts; 0 chooses it by cross-validation on the cosine.

  Returns:
    The mapper (None for 'none'), and 'kind', 'strength' and 'num_pairs'.

  Raises:
    UserError: if there are too few pairs.
    ValueError: for another kind, a bad strength, or shapes that do not fit.
  """
  check_kind(kind)
  if not strength >= 0:
    raise ValueError(f"strength={strength}: expected 0 or a positive number")
  if kind == "none":
    return None, {"kind": kind}
  text, audio = np.asarray(text, np.float64), np.asarray(audio, np.float64)
  if text.ndim != 2 or text.shape != audio.shape or len(groups) != len(text):
    raise ValueError(
      f"text of shape {text.shape}, audio of shape {audio.shape}, "
      f"{len(groups)} groups: expected one [pairs, dim] and a group per pair"
    )
  if len(text) < _MIN_PAIRS:
    raise errors.UserError(
      f"{len(text)} pairs of text and audio: a text mapper needs at least "
      f"{_MIN_PAIRS}"
    )
  report: dict[str, Any] = {"kind": kind, "num_pairs": len(text)}
  if kind == "shift":
    return TextMapper(audio.mean(0) - text.mean(0)), report
  strength = strength or _choose(text, audio, np.asarray(groups))
  return _ridge(text, audio, strength), {**report, "strength": strength}
