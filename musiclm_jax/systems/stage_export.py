# SPDX-License-Identifier: Apache-2.0
"""Exports a stage as StableHLO, to be run without flax or the networks.

A stage artefact flows in, an artefact of kind 'exported_stage' flows out: its
weights, and four programs for any number of rows.

  prefill_0, prefill_N: weights, tokens int32 [rows, prefix] -> cache, hidden
  step: weights, cache, token int32 [rows] -> cache, hidden
  logits: weights, hidden [rows, embed], level int32 [] -> float32 [rows, codes]

N is the number of frames that windows after one another share. Draws are not
part of the programs: `exported_stage.py` has the loop around them.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from musiclm_jax.core import artifacts, errors
from musiclm_jax.core import precision as precision_lib
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.layers import transformer as transformer_lib
from musiclm_jax.networks import decoder_lm
from musiclm_jax.systems import exported_stage, stage_lm, stage_program

PLATFORMS = ("cpu", "tpu", "cuda")
DTYPES = ("float32", "bfloat16")


def _programs(
  network: decoder_lm.DecoderLM,
  shapes: tuple[tuple[int, int], ...],
  params: Any,
  num_known: Sequence[int],
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
  """Functions by file name, with shapes of their arguments."""
  # A symbol: one program serves batches of any size.
  (rows,) = jax.export.symbolic_shape("rows")
  levels = shapes[-1][1]

  def prefill(params, tokens):
    hidden, state = network.apply(
      {"params": params}, tokens, shapes, method="prefill", mutable=["cache"]
    )
    return state["cache"], hidden

  def step(params, cache, token):
    hidden, state = network.apply(
      {"params": params, "cache": cache},
      token,
      method="step",
      mutable=["cache"],
    )
    return state["cache"], hidden

  def logits(params, hidden, level):
    return network.apply(
      {"params": params}, hidden, level, method="level_logits"
    )

  def tokens(frames):
    length = 1 + decoder_lm.target_start(shapes) + frames * levels
    return jax.ShapeDtypeStruct((rows, length), jnp.int32)

  cache, hidden = jax.eval_shape(prefill, params, tokens(0))
  token = jax.ShapeDtypeStruct((rows,), jnp.int32)
  level = jax.ShapeDtypeStruct((), jnp.int32)
  found = {
    exported_stage.prefill_name(frames): (prefill, (params, tokens(frames)))
    for frames in num_known
  }
  found[exported_stage.STEP] = (step, (params, cache, token))
  found[exported_stage.LOGITS] = (logits, (params, hidden, level))
  return found


def export(
  stage_dir: str | os.PathLike,
  directory: str | os.PathLike,
  platforms: Sequence[str] = PLATFORMS,
  compute_dtype: str = "float32",
) -> str:
  """Writes a stage as programs.

  Args:
    stage_dir: artefact of kind 'stage'.
    directory: where; replaced when it exists.
    platforms: that the programs are for, of `PLATFORMS`.
    compute_dtype: of weights and activations, of `DTYPES`.

  Returns:
    The fingerprint.

  Raises:
    UserError: if the stage is missing or damaged, or an argument is unknown.
  """
  for platform in platforms:
    if platform not in PLATFORMS:
      raise errors.UserError(
        f"platforms: expected some of {', '.join(PLATFORMS)}, got {platform!r}"
      )
  if not platforms:
    raise errors.UserError(f"platforms: expected some of {PLATFORMS}")
  if compute_dtype not in DTYPES:
    raise errors.UserError(
      f"compute_dtype={compute_dtype!r}: expected one of {', '.join(DTYPES)}"
    )
  artifact, fields = stage_lm.read(stage_dir)
  spec = fields["spec"]
  streams = {stream.name: stream for stream in fields["streams"]}
  network = stage_program.decode_network(
    spec,
    streams,
    fields["transformer"],
    precision_lib.Precision(compute=compute_dtype),
    fields["aligned_conditioning"],
  )
  layout = stages_lib.StageLayout(spec, streams)
  arrays = transformer_lib.unstack_layers(artifact.arrays)
  dtype = jnp.dtype(compute_dtype)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), arrays
  )
  frames = layout.num_target_frames
  files, versions = {}, set()
  programs = _programs(network, layout.shapes, params, (0, frames // 2))
  for name, (function, arguments) in programs.items():
    exported = jax.export.export(jax.jit(function), platforms=list(platforms))(
      *arguments
    )
    files[name] = bytes(exported.serialize())
    versions.add(exported.calling_convention_version)
  (convention,) = versions
  settings = {
    "export_version": exported_stage.EXPORT_VERSION,
    "jax_version": jax.__version__,
    "calling_convention_version": convention,
    "platforms": list(platforms),
    "compute_dtype": compute_dtype,
    "stage_fingerprint": artifact.fingerprint,
    **{
      name: artifact.config[name] for name in ("spec", "streams", "tokenizers")
    },
  }
  return artifacts.save(
    directory,
    exported_stage.KIND,
    settings,
    arrays,
    artifact.metadata,
    files,
  )
