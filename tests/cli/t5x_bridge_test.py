# SPDX-License-Identifier: Apache-2.0
"""The adapter for T5X, against stand-ins for the few names it takes from T5X.

T5X itself is not installed here; what flax does with the results is real.
"""

import abc
import importlib.util
import pathlib
import sys
import types

import flax
import jax
import numpy as np
import pytest
from flax.linen import partitioning as flax_partitioning

from musiclm_jax.cli import t5x_bridge
from musiclm_jax.core import errors, stages, streams
from musiclm_jax.data import loader, tasks
from musiclm_jax.layers import transformer
from musiclm_jax.models import token_lm

STREAMS = (
  streams.TokenStream("mulan", 8, 2, 0.0),
  streams.TokenStream("semantic", 16, 1, 25.0),
)


@pytest.fixture(name="fake_t5x")
def _fake_t5x(monkeypatch):
  class BaseModel(abc.ABC):
    def __init__(self, optimizer_def):
      self.optimizer_def = optimizer_def

    @abc.abstractmethod
    def loss_fn(self, params, batch, dropout_rng, flax_mutables=None): ...

    @abc.abstractmethod
    def predict_batch_with_aux(self, params, batch, rng=None): ...

    @abc.abstractmethod
    def score_batch(self, params, batch, return_intermediates=False): ...

    @abc.abstractmethod
    def get_initial_variables(self, rng, input_shapes, input_types=None): ...

  modules = {
    "t5x": types.ModuleType("t5x"),
    "t5x.models": types.SimpleNamespace(BaseModel=BaseModel),
    "t5x.train_state": types.SimpleNamespace(
      flax=flax, flax_partitioning=flax_partitioning
    ),
    "t5x.checkpoints": types.SimpleNamespace(latest_step=lambda path: 3),
  }
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)


def make_trainable():
  config = transformer.TransformerConfig(
    num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, dropout_rate=0.5
  )
  return token_lm.TokenLM(
    token_lm.TokenLMConfig(
      spec=stages.semantic_stage(2, 0.4), streams=STREAMS, transformer=config
    )
  )


def make_batch(trainable):
  layout, rng = trainable.layout, np.random.default_rng(0)
  codes = {
    "mulan": rng.integers(0, 8, (2, 1, 2)),
    "semantic": rng.integers(0, 16, (2, 10, 1)),
  }
  tokens = layout.encode(codes).astype(np.int32)
  weights = np.ones(tokens.shape, np.float32)
  weights[:, : layout.target_start] = 0
  inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=1)
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": tokens,
    "decoder_loss_weights": weights,
  }


def test_model_has_our_loss_and_named_parameters(fake_t5x):
  trainable = make_trainable()
  model = t5x_bridge.stage_model(trainable, "optimizer")
  batch = make_batch(trainable)
  shapes = {name: array.shape for name, array in batch.items()}
  collections = {}

  @jax.jit
  def initialize(key):
    # Axis names are no arrays: T5X keeps them aside as well.
    variables = model.get_initial_variables(key, shapes)
    collections["axes"] = variables["params_axes"]
    return variables["params"]

  params = initialize(jax.random.PRNGKey(0))
  # As T5X does it: every parameter has as many names as dimensions.
  names = flax_partitioning.get_axis_names(collections["axes"])
  flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(params), sep="/")
  flat_names = flax.traverse_util.flatten_dict(
    flax.core.unfreeze(names), sep="/"
  )
  assert flat.keys() == flat_names.keys()
  assert all(len(flat_names[key]) == flat[key].ndim for key in flat)
  assert any("mlp" in tuple(spec) for spec in flat_names.values())

  loss, metrics = jax.jit(model.eval_fn)(params, batch)
  expected, output = jax.jit(trainable.loss, static_argnums=4)(
    {"params": flax.core.unfreeze(params)}, batch, jax.random.key(0), 0, False
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert metrics.keys() == output.metrics.keys()
  np.testing.assert_allclose(metrics["loss"].compute(), expected, rtol=1e-6)

  gradient = jax.jit(jax.value_and_grad(model.loss_fn, has_aux=True))
  (dropped, _), grads = gradient(params, batch, jax.random.PRNGKey(1))
  assert abs(float(dropped) - float(expected)) > 1e-4
  assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
  with pytest.raises(errors.UserError, match="musiclm generate"):
    model.predict_batch_with_aux(params, batch)


def test_rules_name_only_axes_of_t5x():
  rules = t5x_bridge.logical_axis_rules()
  assert {axis for _, axis in rules} <= {"data", "model", None}
  assert dict(rules)["batch"] == "data"
  assert dict(rules)["mlp"] == "model"


def test_dataset_goes_on_at_the_checkpoint(fake_t5x, tmp_path):
  path = pathlib.Path(__file__).parents[1] / "data" / "conftest.py"
  spec = importlib.util.spec_from_file_location("data_fixtures", path)
  fixtures = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(fixtures)
  splits = {"train": [(n, 75) for n in range(7)]}
  fixtures.write_cache(tmp_path, fixtures.make_cache_config(), splits)
  config = tasks.StageTaskConfig(str(tmp_path), stages.coarse_stage(3, 2, 1.0))
  data = loader.Loader(
    tasks.stage_recipe(config), 4, seed=5, eval_split="train"
  )
  wanted = types.SimpleNamespace(batch_size=4)
  dataset = t5x_bridge.get_dataset(wanted, 1, 2, loader=data, model_dir="x")
  found = next(dataset.as_numpy_iterator())
  expected = next(data.train_batches(3, 1, 2))
  assert found.keys() == expected.keys() - {"example_ids"}
  for name, array in found.items():
    np.testing.assert_array_equal(array, expected[name])
  held_out = t5x_bridge.get_eval_datasets(wanted, 0, 2, 1, loader=data)
  assert len(list(held_out["heldout"].as_numpy_iterator())) == 1
  with pytest.raises(errors.UserError, match="expected BATCH_SIZE=4"):
    t5x_bridge.get_dataset(
      types.SimpleNamespace(batch_size=8), 0, 1, loader=data
    )


def test_missing_t5x_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "t5x", None)
  with pytest.raises(errors.UserError, match="docs/t5x.md"):
    t5x_bridge.stage_model(make_trainable(), None)
