# SPDX-License-Identifier: Apache-2.0
"""Export of a melody embedder, and its score on a small planted corpus."""

import argparse
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from musiclm_jax.audio import spectrogram
from musiclm_jax.cli import melody_exporter, recognition
from musiclm_jax.core import artifacts, errors
from musiclm_jax.layers import transformer
from musiclm_jax.models import triplet
from musiclm_jax.networks import melody
from musiclm_jax.partitioning import axes

RATE_HZ = 8000
NAMES = ("reference", "instrument")
NETWORK = melody.MelodyConfig(
  mel=spectrogram.LogMelConfig(
    sample_rate_hz=RATE_HZ, num_mels=16, frame_length=512, hop_length=400
  ),
  output_dim=8,
  transformer=transformer.TransformerConfig(
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=16,
    positions="none",
    causal=False,
  ),
)


def _tune(work, version):
  """5 s of notes of 0.5 s; the second version has more partials."""
  pitches = np.random.default_rng(work).integers(60, 84, 10)
  hz = np.repeat(440 * 2 ** ((pitches - 69) / 12), RATE_HZ // 2)
  phase = 2 * np.pi * np.cumsum(hz) / RATE_HZ
  partials = (1.0,) if version == 0 else (1.0, 0.6, 0.4)
  tone = sum(a * np.sin(k * phase) for k, a in enumerate(partials, 1))
  return (0.3 * tone).astype(np.float32)


def _records(num_works):
  for work in range(num_works):
    for version, name in enumerate(NAMES):
      content = io.BytesIO()
      waveform = _tune(work, version)
      soundfile.write(content, waveform, RATE_HZ, format="FLAC")
      yield {
        "id": f"work{work}~{version}",
        "audio": content.getvalue(),
        "sample_rate_hz": RATE_HZ,
        "num_samples": len(waveform),
        "work_id": f"work{work}",
        "arrangement": version,
        "captions": [],
        "aspects": [],
        "transformation": name,
        "tempo_ratio": 1.0,
      }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """6 works in 2 versions, in order."""
  import tensorflow_datasets as tfds

  from musiclm_jax.data import corpora

  directory = tmp_path_factory.mktemp("corpus")
  features = {
    **corpora.clip_features(),
    "transformation": tfds.features.Text(),
    "tempo_ratio": np.float32,
  }
  with tfds.core.registered.skip_registration():

    class Melodies(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")
      pkg_dir_path = pathlib.Path(directory)

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(features),
          disable_shuffling=True,
          metadata=tfds.core.MetadataDict(
            versions_per_melody={"test": 2},
            versions_in_key={"test": 2},
            max_tempo_ratio=1.0,
          ),
        )

      def _split_generators(self, unused):
        return {"test": enumerate(_records(6))}

      def _generate_examples(self, unused):
        raise AssertionError("splits hold their examples")

  builder = Melodies(data_dir=directory, file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_path)


@pytest.fixture(scope="module")
def artifact(corpus, tmp_path_factory):
  """A random embedder with codes fitted on the corpus."""
  model = triplet.Triplet(triplet.TripletConfig(), NETWORK)
  batch = {"waveform": jnp.zeros((1, 4 * RATE_HZ))}
  variables = axes.unbox(jax.jit(model.init)(jax.random.key(0), batch))
  directory = tmp_path_factory.mktemp("artifact") / "melody"
  exporter = melody_exporter.MelodyExporter(
    corpus, num_codebooks=3, codebook_size=4, split="test"
  )
  mark = exporter.export(model, variables, str(directory), {"step": 0})
  assert mark == artifacts.load(directory, "melody").fingerprint
  return str(directory)


def _arguments(artifact, corpus, directory, **changes):
  values = {
    "melody": artifact,
    "corpus_dir": corpus,
    "output_dir": str(directory),
    "split": "test",
    "max_works": 0,
    "seed": 0,
  }
  return argparse.Namespace(**{**values, **changes})


def test_export_says_what_the_codes_keep(artifact):
  report = artifacts.load(artifact).metadata["rvq"]
  assert report["num_embeddings"] == 24  # 2 windows of each clip
  first, second, third = report["squared_error"]
  assert first >= second >= third >= 0
  assert all(0 < share <= 1 for share in report["used"])


def test_scores_by_transformation(artifact, corpus, tmp_path):
  text = recognition.run(_arguments(artifact, corpus, tmp_path))
  found = json.loads((tmp_path / recognition.FILE_NAME).read_text())
  assert found["fingerprints"]["melody"] == artifacts.load(artifact).fingerprint
  assert set(found["results"]) == {"embedding", "codes", "chroma"}
  for result in found["results"].values():
    assert result["num_works"] == 6
    assert set(result["transformations"]) == {
      "instrument",
      *recognition.CHANGES,
    }
  chroma = found["results"]["chroma"]["transformations"]
  # Other partials leave most of the chroma.
  assert chroma["instrument"]["mrr"]["mean"] > 0.9
  assert "| instrument |" in text
  assert (tmp_path / recognition.TABLE_NAME).read_text().strip() == text
  fewer = recognition.run(
    _arguments(artifact, corpus, tmp_path / "fewer", max_works=4)
  )
  assert fewer.startswith("4 works")


def test_other_corpora_are_refused(artifact, corpus, tmp_path):
  with pytest.raises(errors.UserError, match="split 'train'"):
    recognition.run(_arguments(artifact, corpus, tmp_path, split="train"))
  with pytest.raises(errors.UserError, match="expected at least 2 in 2"):
    recognition.run(_arguments(artifact, corpus, tmp_path, max_works=1))
