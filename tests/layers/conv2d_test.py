# SPDX-License-Identifier: Apache-2.0
"""2-D convolution: values and gradients are those of XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.layers import conv2d

_CASES = {
  # name: picture, taps, strides, channels, features, padding
  "plain": ((12, 17), (3, 3), (1, 1), 8, 16, "SAME"),
  "strided": ((12, 17), (3, 4), (1, 2), 8, 16, "SAME"),
  "strided_both": ((11, 18), (4, 4), (2, 2), 8, 4, "SAME"),
  "shortcut": ((11, 18), (1, 1), (2, 2), 8, 4, "SAME"),
  "taps_below_stride": ((10, 14), (2, 2), (3, 3), 8, 4, "SAME"),
  "taps_above_two_strides": ((13, 14), (7, 5), (2, 3), 8, 4, "SAME"),
  "few_channels": ((12, 17), (7, 7), (1, 1), 2, 16, "SAME"),
  "behind_only": ((12, 17), (3, 3), (2, 2), 8, 4, ((0, 1), (0, 1))),
  "valid": ((12, 16), (1, 16), (1, 1), 16, 1, "VALID"),
}


def _both(case, seed=0):
  size, taps, strides, channels, features, padding = _CASES[case]
  random = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(random.standard_normal(shape, dtype=np.float32))

  x, kernel = draw(3, *size, channels), draw(*taps, channels, features)

  def native(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      strides,
      padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  def ours(x, kernel):
    return conv2d.convolution_2d(x, kernel, strides, padding)

  slope = draw(*native(x, kernel).shape)
  results = []
  for function in (native, ours):

    def run(x, kernel, slope, function=function):
      y, pull_back = jax.vjp(function, x, kernel)
      return y, *pull_back(slope)

    results.append(jax.jit(run)(x, kernel, slope))
  return results


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("case", list(_CASES))
def test_value_and_gradients_are_xlas(case, pieces, monkeypatch):
  if pieces:
    # Pieces of 2 to 5 rows: the last one is not full.
    monkeypatch.setattr(conv2d, "_MIN_OUTPUTS", 0)
    monkeypatch.setattr(conv2d, "_PIECE_SIZE", 2500)
  for want, got in zip(*_both(case), strict=True):
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * scale)


def test_other_backends_keep_xlas_gradients():
  """Lowered for a TPU there is no loop over pieces."""

  def loss(x, kernel):
    return conv2d.convolution_2d(x, kernel, (1, 2), "SAME").sum()

  x, kernel = jnp.ones((4, 64, 128, 8)), jnp.ones((3, 4, 8, 8))
  grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
  lowered = {
    platform: grad.trace(x, kernel)
    .lower(lowering_platforms=(platform,))
    .as_text()
    for platform in ("cpu", "tpu")
  }
  assert "stablehlo.while" in lowered["cpu"]
  assert "stablehlo.while" not in lowered["tpu"]


def test_flax_convolution_takes_it():
  own, ours = (
    nn.Conv(8, (3, 3), 2, padding=((0, 1), (0, 1)), conv_general_dilated=way)
    for way in (None, conv2d.general_dilated)
  )
  x = jax.random.normal(jax.random.key(0), (2, 9, 12, 4))
  variables = own.init(jax.random.key(1), x)
  np.testing.assert_allclose(ours.apply(variables, x), own.apply(variables, x))


def test_what_it_cannot_do_is_named():
  module = nn.Conv(
    8, (3, 3), kernel_dilation=2, conv_general_dilated=conv2d.general_dilated
  )
  with pytest.raises(ValueError, match=r"rhs_dilation=\(2, 2\)"):
    module.init(jax.random.key(1), jnp.ones((2, 9, 12, 4)))


def test_kernel_gradient_in_bfloat16_is_summed_in_float32():
  """65536 ones: bfloat16 stops counting at 256."""
  x = jnp.ones((4, 128, 128, 8), jnp.bfloat16)
  for shape in ((1, 1), (3, 3)):
    kernel = jnp.ones((*shape, 8, 8), jnp.bfloat16)
    slope = jax.jit(
      jax.grad(
        lambda kernel: (
          conv2d.convolution_2d(x, kernel, (1, 1), "SAME")
          .astype(jnp.float32)
          .sum()
        )
      )
    )(kernel)
    assert slope.dtype == jnp.bfloat16
    centre = slope[shape[0] // 2, shape[1] // 2]
    np.testing.assert_allclose(centre.astype(np.float32), 65536.0)
