# SPDX-License-Identifier: Apache-2.0
"""musicnn's own TensorFlow graph, from the package on disk, to compare with.

Only for recording answers: `python tests/support/musicnn_graph.py PACKAGE DIR`.
"""

import pathlib
import sys

import numpy as np

MODELS = ("MTT_musicnn", "MTT_vgg", "MSD_musicnn", "MSD_vgg")
LOGITS = {"musicnn": "model/dense_1/BiasAdd", "vgg": "model/dense/BiasAdd"}
EMBEDDING = {
  "musicnn": "model/batch_normalization_10/batchnorm/add_1",
  "vgg": "model/Flatten/flatten/Reshape",
}


def patches() -> np.ndarray:
  """Spectrograms like music's: most values small, some large."""
  generator = np.random.default_rng(0)
  smooth = np.cumsum(generator.normal(size=(2, 187, 96)), 2) * 0.15
  noise = 0.3 * generator.normal(size=(2, 187, 96))
  return np.clip(2 + smooth + noise, 0, 5).astype(np.float32)


def random_variables(shapes) -> dict[str, np.ndarray]:
  """Variables by name for shapes by name, the same each time."""
  generator = np.random.default_rng(1)
  variables = {}
  for name in sorted(shapes):
    shape = tuple(shapes[name])
    value = generator.normal(size=shape)
    if name.endswith("kernel"):
      value *= 1.4 / np.sqrt(np.prod(shape[:-1]))
    elif name.endswith(("gamma", "variance")):
      value = np.exp(0.2 * value)
    else:
      value *= 0.2
    variables[name] = value.astype(np.float32)
  return variables


def run(package, model, variables, log_mel):
  """Logits and embedding of the graph that was stored when it was trained.

  Args:
    package: folder of the package musicnn.
    model: of `MODELS`.
    variables: by name.
    log_mel: float32 `[batch, 187, 96]`.
  """
  import tensorflow as tf

  description = tf.compat.v1.MetaGraphDef()
  path = pathlib.Path(package) / model / ".meta"
  description.ParseFromString(path.read_bytes())
  kind = model.split("_")[1]
  outputs = [LOGITS[kind], EMBEDDING[kind]]
  graph_def = tf.compat.v1.graph_util.extract_sub_graph(
    description.graph_def, outputs
  )
  inputs = {}
  for node in graph_def.node:
    node.device = ""
    node.attr.pop("_output_shapes", None)
    if node.op == "Placeholder":
      is_flag = node.attr["dtype"].type == tf.bool.as_datatype_enum
      inputs[node.name + ":0"] = False if is_flag else log_mel
    elif node.op in ("VariableV2", "VarHandleOp"):
      value, dtype = variables[node.name], node.attr["dtype"].type
      node.op = "Const"
      node.attr.clear()
      node.attr["dtype"].type = dtype
      node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
  graph = tf.Graph()
  with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
    tf.import_graph_def(graph_def, name="")
    return session.run([name + ":0" for name in outputs], inputs)


def main(package, directory):
  """Records what the graph answers with its own and with random weights."""
  from musiclm_jax.data import tensorflow_checkpoints

  for model in MODELS:
    found = {
      name: array
      for name, array in tensorflow_checkpoints.read(
        pathlib.Path(package) / model
      ).items()
      if "Adam" not in name and "_power" not in name
    }
    shapes = {name: array.shape for name, array in found.items()}
    own = run(package, model, found, patches())
    random = run(package, model, random_variables(shapes), patches())
    np.savez_compressed(
      pathlib.Path(directory) / f"{model}.npz",
      logits=own[0],
      embedding=own[1],
      random_logits=random[0],
      random_embedding=random[1],
      names=np.array(sorted(shapes)),
      shapes=np.array([str(shapes[name]) for name in sorted(shapes)]),
    )
    print(model, own[0].shape, own[1].shape, np.abs(own[0]).max(), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
