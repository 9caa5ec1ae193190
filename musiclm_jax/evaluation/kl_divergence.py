# SPDX-License-Identifier: Apache-2.0
"""KL divergence of what a classifier hears (KLD): logits in, nats out.

The divergence between the class probabilities of a reference clip and of what
was generated for the same caption, in nats, for each pair of clips; lower is
better. The main direction is KL(reference || evaluated), with the formula of
audiocraft: sum p_r (log p_r - log(p_e + 1e-6)), so that at most about 13.8
nats come of a class the evaluated clip does not have.

Probabilities of a classifier with one class per clip are the softmax of its
logits. Of one with several labels (MusicLM's LEAF, YAMNet, taggers), each class
has its own sigmoid, and those are divided by their sum: a distribution over
what is heard, blind to how much is heard in all.
"""

import numpy as np

EPSILON = 1e-6
SOFTMAX = "softmax"
NORMALIZED_SIGMOID = "sigmoid divided by its sum"


def normalization(multi_label: bool) -> str:
  """The name of what turns logits into probabilities, for the card."""
  return NORMALIZED_SIGMOID if multi_label else SOFTMAX


def log_probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
  """Log of a distribution over classes.

  Args:
    logits: float `[..., classes]`, finite.
    multi_label: whether classes are judged apart (sigmoid).

  Returns:
    float64 `[..., classes]`; their exp sums to 1.

  Raises:
    ValueError: if there is no class, or a logit is not finite.
  """
  logits = np.asarray(logits, np.float64)
  if not logits.ndim or logits.shape[-1] < 2:
    raise ValueError(f"logits of shape {logits.shape}: expected [..., >= 2]")
  if not np.isfinite(logits).all():
    raise ValueError("logits: expected finite numbers, found NaN or Inf")
  if multi_label:
    logits = -np.logaddexp(0.0, -logits)  # log of the sigmoid
  largest = logits.max(-1, keepdims=True)
  scaled = logits - largest
  return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def kl_divergence(
  reference_logits: np.ndarray,
  evaluated_logits: np.ndarray,
  multi_label: bool,
  epsilon: float = EPSILON,
) -> np.ndarray:
  """KL(reference || evaluated) of each pair of clips.

  Args:
    reference_logits: float `[clips, classes]`, or `[clips, windows, classes]`
      where windows are compared one by one and averaged (audiocraft's
      segments).
    evaluated_logits: of the same shape, the clips in the same order.
    multi_label: whether classes are judged apart.
    epsilon: added to the evaluated probabilities; 0 gives the plain
      divergence, which is at least 0.

  Returns:
    float64 `[clips]`, nats. At least -classes * epsilon.

  Raises:
    ValueError: if shapes differ or are others, or as `log_probabilities`.
  """
  reference = log_probabilities(reference_logits, multi_label)
  evaluated = log_probabilities(evaluated_logits, multi_label)
  if reference.shape != evaluated.shape or reference.ndim not in (2, 3):
    raise ValueError(
      f"logits of shapes {reference.shape} and {evaluated.shape}: expected "
      "the same [clips, classes] or [clips, windows, classes]"
    )
  if epsilon > 0:
    evaluated = np.logaddexp(evaluated, np.log(epsilon))
  divergence = (np.exp(reference) * (reference - evaluated)).sum(-1)
  return divergence if divergence.ndim == 1 else divergence.mean(1)
