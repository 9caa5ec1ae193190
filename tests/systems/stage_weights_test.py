# SPDX-License-Identifier: Apache-2.0
"""Weights as int8: half a step of each output channel is the largest error."""

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.systems import stage_weights


def test_kernels_are_rounded_by_output_channel():
  generator = np.random.default_rng(0)
  kernel = generator.standard_normal((6, 5)).astype(np.float32)
  kernel *= 10.0 ** np.arange(-2, 3)
  kernel[:, 2] = 0
  output = generator.standard_normal((2, 6, 4)).astype(np.float32)
  out = generator.standard_normal((3, 2, 6)).astype(np.float32)
  table = generator.standard_normal((7, 6)).astype(np.float32)
  params = {
    "output": output,
    "layer": {"wi": {"kernel": kernel}, "attention": {"out": {"kernel": out}}},
    "token_embed": {"table": table},
  }
  held = stage_weights.stored(params, "int8", np.float32)
  values, scales = held["params"], held["scales"]
  assert scales["output"].shape == (2, 4)
  assert scales["layer"]["attention"]["out"]["kernel"].shape == (6,)
  assert "token_embed" not in scales
  np.testing.assert_array_equal(values["token_embed"]["table"], table)
  for value, scale, wanted in [
    (values["layer"]["wi"]["kernel"], scales["layer"]["wi"]["kernel"], kernel),
    (values["output"], scales["output"][:, None], output),
  ]:
    assert value.dtype == np.int8
    error = np.abs(np.asarray(value) * np.asarray(scale) - wanted)
    assert (error <= np.asarray(scale) * 0.5001).all()
    assert np.abs(np.asarray(value)).max() == 127
  assert stage_weights.num_bytes(held, 2, ("token_embed",)) == (
    2 * 6 * 4 / 2 + 2 * 4 * 4 / 2 + 6 * 5 + 5 * 4 + 36 + 6 * 4
  )


def test_the_choice_of_the_stage_is_what_it_computes_in():
  assert stage_weights.resolve("compute", "bfloat16") == "bfloat16"
  assert stage_weights.resolve("int8", "float32") == "int8"
  with pytest.raises(errors.UserError, match="weights='int4'.*'int8'"):
    stage_weights.resolve("int4", "float32")
