# SPDX-License-Identifier: Apache-2.0
"""Rule sets by name: which mesh axis each logical axis is split over."""

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

_REPLICATED = tuple(
  (name, None)
  for name in (
    "length",
    "frames",
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

# Order is priority; a mesh axis is used once per array, so 'embed' of an
# activation stays whole because 'batch' already took 'fsdp'.
RULE_SETS: dict[str, Rules] = {
  "standard": (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("embed", "fsdp"),
    ("conv_out", "tensor"),
    ("conv_in", "fsdp"),
    *_REPLICATED,
  ),
  "data_parallel": (
    ("batch", ("data", "fsdp", "tensor")),
    ("vocab", None),
    ("mlp", None),
    ("heads", None),
    ("embed", None),
    ("conv_out", None),
    ("conv_in", None),
    *_REPLICATED,
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
