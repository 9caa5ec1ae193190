# SPDX-License-Identifier: Apache-2.0
"""What exporters put into artefacts, and what they leave out."""

import jax
import numpy as np
import pytest
import soundfile
import tokenizer_artifacts as small

from musiclm_jax.cli import exporters
from musiclm_jax.core import artifacts
from musiclm_jax.data import corpora
from musiclm_jax.models import contrastive
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import tokenizers


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory):
  """A corpus of clips of 2 s, of which all but two works are for training."""
  root = tmp_path_factory.mktemp("corpus")
  (root / "music").mkdir()
  for number in range(8):
    soundfile.write(
      root / f"music/{number}.flac", small.music(2.5, number), small.RATE_HZ
    )
  return str(corpora.prepare_audio_folder(root / "built", root / "music"))


def test_mulan_artifact_holds_the_towers_and_not_the_loss(corpus_dir, tmp_path):
  text_model = tmp_path / "text.model"
  text_model.write_bytes(small.text_model(["a slow piece", "a loud march"]))
  trainable = contrastive.Contrastive(
    contrastive.ContrastiveConfig(loss="sigmoid", crop_secs=2.0),
    small.mulan_config(),
  )
  shapes = trainable.input_shapes(1)
  batch = {
    name: np.ones(shape.shape, shape.dtype) for name, shape in shapes.items()
  }
  variables = axes.unbox(jax.jit(trainable.init)(jax.random.key(0), batch))
  assert "similarity_bias" in variables["params"]
  exporter = exporters.MuLanExporter(corpus_dir, str(text_model), 2, 4)
  exporter.export(trainable, variables, str(tmp_path / "mulan"), {})
  found = artifacts.load(tmp_path / "mulan", "mulan").arrays["params"]
  towers = jax.eval_shape(
    trainable.network.init, jax.random.key(0), *batch.values()
  )
  assert jax.tree.structure(found) == jax.tree.structure(
    axes.unbox(towers)["params"]
  )
  # And it works without.
  tokenizer = tokenizers.MuLanTokenizer.load(tmp_path / "mulan")
  codes = tokenizer.encode_text(["a loud march"])
  assert codes.shape[-1] == 2
