# SPDX-License-Identifier: Apache-2.0
"""Rule sets by name: which mesh axis each logical axis is split over."""

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

_WHOLE = tuple(
  (name, None)
  for name in (
    "kv",
    "layers",
    "codebook",
    "code_dim",
    "kernel_time",
    "kernel_freq",
    "relpos_buckets",
    "stats",
  )
)
_BATCH = ("batch", ("data", "fsdp"))
_TENSOR = (
  ("vocab", "tensor"),
  ("mlp", "tensor"),
  ("heads", "tensor"),
  ("conv_out", "tensor"),
)
_FSDP = (("embed", "fsdp"), ("conv_in", "fsdp"))
_SEQUENCE = (("length", "sequence"), ("frames", "sequence"))

# Order is priority; a mesh axis is used once per array, so 'embed' of an
# activation stays whole because 'batch' already took 'fsdp', and what is split
# over 'tensor' by its heads is not split over it by its length.
RULE_SETS: dict[str, Rules] = {
  "standard": (_BATCH, *_TENSOR, *_FSDP, *_SEQUENCE, *_WHOLE),
  # Between the products of a layer, where neither heads nor MLP are there to
  # split, the tensor axis splits the length: norms, dropout and what is kept
  # for the backward pass are then split too (arXiv 2205.05198).
  "sequence_parallel": (
    _BATCH,
    *_TENSOR,
    *_FSDP,
    ("length", ("sequence", "tensor")),
    *_SEQUENCE,
    *_WHOLE,
  ),
  # Every device holds all parameters, whatever the mesh.
  "data_parallel": (
    ("batch", ("data", "fsdp", "sequence", "tensor")),
    *((name, None) for name, _ in (*_TENSOR, *_FSDP, *_SEQUENCE)),
    *_WHOLE,
  ),
}


def rule_set(name: str) -> Rules:
  """The rule set called `name`.

  Raises:
    ValueError: if there is none.
  """
  if name not in RULE_SETS:
    raise ValueError(f"rules={name!r}: expected one of {sorted(RULE_SETS)}")
  return RULE_SETS[name]
