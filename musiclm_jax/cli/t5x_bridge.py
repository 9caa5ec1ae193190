# SPDX-License-Identifier: Apache-2.0
"""Stages for people who have T5X: a model, its data and rules for `t5x.train`.

Optional and off the main path; T5X is imported only when one of these
functions is called. Bound by `gin/runs/t5x_train.gin`; docs/t5x.md says which
revision of T5X was read and what is untested.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.core import errors
from musiclm_jax.models import token_lm
from musiclm_jax.partitioning import axes
from musiclm_jax.partitioning import rules as rules_lib

# Our mesh axes and those of T5X's PjitPartitioner.
_T5X_AXES = {"data": "data", "fsdp": "data", "tensor": "model"}


def _t5x(name: str) -> Any:
  """Module `t5x.<name>`.

  Raises:
    UserError: if T5X cannot be imported.
  """
  import importlib

  try:
    return importlib.import_module(f"t5x.{name}")
  except ImportError as error:
    raise errors.UserError(
      f"t5x.{name} cannot be imported ({error}): T5X is not on the package "
      "index; install it from its repository as docs/t5x.md says, or use "
      "`musiclm train`"
    ) from error


def logical_axis_rules(name: str = "standard") -> list[tuple[str, Any]]:
  """One of our rule sets for T5X's mesh of `data` and `model`.

  Args:
    name: of the rule set.

  Returns:
    Ordered (logical axis, mesh axis or None) pairs. What we split over fsdp
    is split over T5X's data axis; sequence parallelism is not translated.
  """
  rules = []
  for logical, physical in rules_lib.rule_set(name):
    parts = (physical,) if isinstance(physical, (str, type(None))) else physical
    known = [_T5X_AXES[part] for part in parts if part in _T5X_AXES]
    rules.append((logical, known[0] if known else None))
  return rules


def _params_axes(boxed: Any, metadata: type) -> Any:
  """A `params_axes` collection as T5X reads it: names beside each leaf."""
  specs = axes.logical_specs(boxed)

  def convert(node: Any, shape: Any) -> Any:
    out = {}
    for key, value in node.items():
      if isinstance(value, Mapping):
        out[key] = convert(value, shape[key])
      else:
        names = tuple(value) + (None,) * (shape[key].ndim - len(value))
        out[f"{key}_axes"] = metadata(names=names)
    return out

  return convert(specs, axes.unbox(boxed))


def stage_model(trainable: token_lm.TokenLM, optimizer_def: Any) -> Any:
  """A `t5x.models.BaseModel` that trains a stage of this project.

  The loss is the mean over the target tokens of the batch, so gradients of
  microbatches, which T5X adds up, are as many times larger: keep
  `num_microbatches` at None or divide the learning rate. Predicting and scoring
  are left to `musiclm generate` and `evaluate`.

  Args:
    trainable: the stage.
    optimizer_def: of T5X, such as `t5x.adafactor.Adafactor`.

  Raises:
    UserError: if T5X cannot be imported.
  """
  models, train_state = _t5x("models"), _t5x("train_state")
  partitioning = train_state.flax_partitioning

  class StageModel(models.BaseModel):
    """A stage as T5X sees it."""

    FEATURE_CONVERTER_CLS = None  # `get_dataset` converts already.

    def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
      del flax_mutables
      return _loss(trainable, params, batch, dropout_rng)

    def eval_fn(self, params, batch, flax_mutables=None):
      del flax_mutables
      return _loss(trainable, params, batch, None)

    def predict_batch_with_aux(self, params, batch, rng=None, **unused):
      raise errors.UserError("decode stages with `musiclm generate`, not T5X")

    def score_batch(self, params, batch, **unused):
      raise errors.UserError("score stages with `musiclm evaluate`, not T5X")

    def get_initial_variables(self, rng, input_shapes, input_types=None):
      del input_types
      batch_size = input_shapes["decoder_input_tokens"][0]
      batch = {
        name: jnp.zeros(shape.shape, shape.dtype)
        for name, shape in trainable.input_shapes(batch_size).items()
      }
      boxed = trainable.init(_typed_key(rng), batch)["params"]
      variables = {
        "params": axes.unbox(boxed),
        "params_axes": _params_axes(boxed, partitioning.AxisMetadata),
      }
      return train_state.flax.core.freeze(variables)

  return StageModel(optimizer_def)


def _typed_key(key: jax.Array) -> jax.Array:
  """T5X keys are raw numbers, ours are typed."""
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  return jax.random.wrap_key_data(key)


def _loss(
  trainable: token_lm.TokenLM,
  params: Any,
  batch: Mapping[str, jax.Array],
  dropout_rng: jax.Array | None,
) -> tuple[jax.Array, dict[str, Any]]:
  """Loss and metrics as sums of clu, which T5X merges and writes."""
  import clu.metrics

  is_training = dropout_rng is not None
  key = _typed_key(dropout_rng) if is_training else jax.random.key(0)
  loss, output = trainable.loss(
    {"params": params}, batch, key, jnp.zeros((), jnp.int32), is_training
  )
  metrics = {
    name: clu.metrics.Average(total=mean.total, count=mean.count)
    for name, mean in output.metrics.items()
  }
  return loss, metrics


def get_dataset(
  cfg: Any,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Any = None,
  *,
  loader: Any,
  model_dir: str = "",
) -> Any:
  """`get_dataset_fn` of `t5x.train`: batches of our loader.

  Args:
    cfg: T5X's DatasetConfig; its `batch_size` has to be that of the loader.
    shard_id: whose rows of the global batch.
    num_shards: hosts that share it.
    feature_converter_cls: unused.
    loader: a `data.loader.Loader` of a stage.
    model_dir: of the run; the data goes on at its newest T5X checkpoint.

  Returns:
    A `tf.data.Dataset` of host batches.

  Raises:
    UserError: if the two batch sizes differ.
  """
  del feature_converter_cls
  if cfg.batch_size != loader.global_batch_size:
    raise errors.UserError(
      f"DatasetConfig.batch_size={cfg.batch_size}: expected BATCH_SIZE="
      f"{loader.global_batch_size}"
    )
  start_step = 0
  if model_dir:
    start_step = _t5x("checkpoints").latest_step(model_dir) or 0
  return loader.train_dataset(start_step, shard_id, num_shards)


def get_eval_datasets(
  cfg: Any,
  shard_id: int,
  num_shards: int,
  eval_steps: int,
  feature_converter_cls: Any = None,
  *,
  loader: Any,
) -> Mapping[str, Any]:
  """`train_eval_get_dataset_fn` of `t5x.train`: held-out batches by name."""
  del cfg, feature_converter_cls
  dataset = loader.eval_dataset(shard_id, num_shards, eval_steps)
  return {"heldout": dataset}
