# SPDX-License-Identifier: Apache-2.0
"""A bundle of the smallest tokenizers and stages with random weights."""

import pathlib

import jax
import jax.numpy as jnp
import tokenizer_artifacts

STAGES = ("stage_semantic", "stage_coarse", "stage_fine")


def random_params(spec, streams, transformer, seed=1):
  """Parameters of a stage, drawn in numpy, which compiles nothing."""
  from musiclm_jax.core import stages
  from musiclm_jax.networks import decoder_lm

  layout = stages.StageLayout(spec, {stream.name: stream for stream in streams})
  network = decoder_lm.DecoderLM(
    decoder_lm.DecoderLMConfig(
      transformer,
      layout.vocab_size,
      layout.num_target_levels,
      layout.target_stream.codebook_size,
    )
  )
  shapes = jax.eval_shape(
    lambda: network.init(
      jax.random.key(0),
      jnp.zeros((1, layout.length), jnp.int32),
      layout.shapes,
    )
  )["params"]
  # Large enough for confident logits, in which the conditioning shows.
  values = tokenizer_artifacts.random_values(shapes, seed)
  return jax.tree.map(lambda leaf: 3 * leaf, values)


def write_stage(directory, spec, streams, fingerprints, dropped_streams=()):
  """Writes a stage as if trained on a cache.

  Args:
    directory: of the artefact.
    spec: the stage.
    streams: by name; those that the spec names are stored.
    fingerprints: of tokenizers by stream.
    dropped_streams: as if trained with condition dropout of these.
  """
  import dataclasses

  from musiclm_jax.layers import transformer
  from musiclm_jax.systems import stage_lm

  if dropped_streams:
    spec = dataclasses.replace(spec, dropped_streams=dropped_streams)
  stack = transformer.TransformerConfig(1, 16, 2, 16)
  used = sorted({segment.stream for segment in spec.segments})
  names = {"acoustic": "soundstream"}
  stage_lm.export_stage(
    directory,
    spec,
    [streams[name] for name in used],
    stack,
    random_params(spec, [streams[name] for name in used], stack),
    {names.get(name, name): fingerprints[name] for name in used},
  )


def write(
  directory, dropped_streams=(), num_semantic_codebooks=1, fine_secs=1.0
) -> pathlib.Path:
  """Writes a bundle: 8 kHz, 50 Hz, 3 codebooks, of which one is coarse.

  Args:
    directory: gets `artifacts` and `bundle`.
    dropped_streams: of the semantic and the coarse stage.
    num_semantic_codebooks: that the coarse stage is told, 0 or 1.
    fine_secs: crop of the fine stage.

  Returns:
    Folder of the bundle.
  """
  from musiclm_jax.core import stages
  from musiclm_jax.systems import bundle, tokenizers

  root = tokenizer_artifacts.write(pathlib.Path(directory) / "artifacts")
  parts = {
    "acoustic": tokenizers.SoundStreamTokenizer.load(root / "soundstream"),
    "semantic": tokenizers.SemanticTokenizer.load(root / "semantic"),
    "mulan": tokenizers.MuLanTokenizer.load(root / "mulan"),
  }
  streams = {name: part.stream for name, part in parts.items()}
  marks = {name: part.fingerprint for name, part in parts.items()}
  specs = (
    stages.semantic_stage(3, 2.0),
    stages.coarse_stage(3, 1, 1.0, num_semantic_codebooks),
    stages.fine_stage(1, 3, fine_secs),
  )
  for name, spec in zip(STAGES, specs):
    dropped = dropped_streams if name != "stage_fine" else ()
    write_stage(root / name, spec, streams, marks, dropped)
  target = pathlib.Path(directory) / "bundle"
  names = ("soundstream", "semantic", "mulan", *STAGES)
  bundle.write_bundle(target, {name: root / name for name in names})
  return target
