# SPDX-License-Identifier: Apache-2.0
"""musicnn's taggers: the answers of their own graph, and clear refusals.

`musicnn_answers/` was recorded by `support/musicnn_graph.py` with TensorFlow
2.21 and the package musicnn 0.1.0: logits and embeddings of the graph that is
stored in the package, with its own weights and with random ones.
"""

import ast
import importlib.util
import pathlib

import jax
import musicnn_graph
import numpy as np
import pytest

from musiclm_jax.core import artifacts, errors
from musiclm_jax.evaluation import published_weights
from musiclm_jax.networks import musicnn
from musiclm_jax.systems import musicnn_import

ANSWERS = pathlib.Path(__file__).parent / "musicnn_answers"


def read_answers(model):
  with np.load(ANSWERS / f"{model}.npz") as file:
    return dict(file)


def random_variables(answers):
  shapes = map(ast.literal_eval, map(str, answers["shapes"]))
  return musicnn_graph.random_variables(
    dict(zip(map(str, answers["names"]), shapes))
  )


def check(model, variables, logits, embedding):
  config, params = musicnn_import.convert(variables, model)
  assert embedding.shape[1] == config.embedding_dim
  found = jax.jit(musicnn.Musicnn(config).apply)(
    {"params": params}, musicnn_graph.patches()
  )
  np.testing.assert_allclose(found[0], logits, atol=1e-4, rtol=1e-5)
  np.testing.assert_allclose(found[1], embedding, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("model", ["MTT_musicnn", "MTT_vgg", "MSD_vgg"])
def test_network_answers_as_the_graph_with_random_weights(model):
  answers = read_answers(model)
  assert np.ptp(answers["random_logits"]) > 1
  check(
    model,
    random_variables(answers),
    answers["random_logits"],
    answers["random_embedding"],
  )


def test_network_answers_as_the_graph_with_its_own_weights(tmp_path):
  spec = importlib.util.find_spec("musicnn")
  pytest.importorskip("tensorflow")
  if spec is None:
    pytest.skip("needs `pip install --no-deps musicnn`")
  from musiclm_jax.cli import import_tagger
  from musiclm_jax.data import tensorflow_checkpoints

  package = pathlib.Path(import_tagger.find_package())
  for model in musicnn_graph.MODELS:
    answers = read_answers(model)
    variables = tensorflow_checkpoints.read(package / model)
    check(model, variables, answers["logits"], answers["embedding"])
    labels = musicnn_import.read_labels(package, model)
    mark = musicnn_import.export(tmp_path / model, model, variables, labels)
    assert published_weights.find(mark) == model


def test_export_names_classes_and_is_not_a_published_one(tmp_path):
  answers = read_answers("MTT_musicnn")
  variables = random_variables(answers)
  names = tuple(f"tag {index}" for index in range(50))
  mark = musicnn_import.export(tmp_path / "a", "MTT_musicnn", variables, names)
  artifact = artifacts.load(tmp_path / "a", "tagger")
  assert tuple(artifact.config["class_names"]) == names
  # It is called as the published one is, but does not have its weights.
  assert published_weights.find(mark) is None
  with pytest.raises(errors.UserError, match="50 classes.*got 49"):
    musicnn_import.export(tmp_path, "MTT_musicnn", variables, names[1:])


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"conv2d_3/kernel": None}, "lacks 'conv2d_3/kernel'"),
    ({"dense/bias": None}, "no variable 'dense/bias'"),
    ({"extra/kernel": np.ones(1)}, "1 variables .* 'extra/kernel'"),
    (
      {"conv2d_6/kernel": np.ones((7, 64, 64))},
      r"'conv2d_6/kernel' has shape \(7, 64, 64\): expected \(7, 64, 1, 64\)",
    ),
  ],
)
def test_what_does_not_fit_is_named(change, match):
  variables = random_variables(read_answers("MTT_musicnn"))
  for name, value in change.items():
    variables.pop(name, None)
    if value is not None:
      variables[name] = value
  with pytest.raises(errors.UserError, match=match):
    musicnn_import.convert(variables, "MTT_musicnn")


def test_labels_are_read_and_nothing_is_run(tmp_path):
  path = tmp_path / "configuration.py"
  path.write_text(
    "raise SystemExit\nMTT_LABELS = ['a', 'b c']\nX = open('x')\n"
  )
  assert musicnn_import.read_labels(tmp_path, "MTT_vgg") == ("a", "b c")
  with pytest.raises(errors.UserError, match="no labels for 'MSD_vgg'"):
    musicnn_import.read_labels(tmp_path, "MSD_vgg")
  with pytest.raises(errors.UserError, match="folder of the package musicnn"):
    musicnn_import.read_labels(tmp_path / "none", "MTT_vgg")
