# SPDX-License-Identifier: Apache-2.0
"""Embedders and classifiers by what a person writes: `KIND:PATH[,NAME=VALUE]`.

A spec such as `mulan:runs/quickstart/bundle` flows in, an opened network
behind `core/protocols.py` flows out. What they are is in docs/embedders.md.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from musiclm_jax.core import errors, protocols

HELP = (
  "KIND:PATH[,NAME=VALUE...], such as mulan:BUNDLE or w2v_bert:BUNDLE,layer=4 "
  "(docs/embedders.md)"
)


@dataclasses.dataclass(frozen=True)
class Spec:
  """A spec, taken apart.

  Attributes:
    kind: of `KINDS`.
    path: where the weights are.
    options: by name, as given.
  """

  kind: str
  path: str
  options: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What a kind needs.

  Attributes:
    open: path and converted options to the network.
    path: what `PATH` is, for messages.
    options: by name, what converts its text; a ValueError says it does not.
  """

  open: Callable[..., protocols.Listener]
  path: str
  options: Mapping[str, Callable[[str], Any]]


def _open_mulan(path: str) -> protocols.TextEmbedder:
  from musiclm_jax.cli import embedding_files
  from musiclm_jax.evaluation import embedders

  return embedders.MuLan(embedding_files.load_mulan(path))


def _open_w2v_bert(path: str, **options: Any) -> protocols.Embedder:
  from musiclm_jax.cli import artifact_paths
  from musiclm_jax.core import artifacts
  from musiclm_jax.evaluation import embedders

  part, expected = artifact_paths.find(path, "semantic", "embedder")
  artifact = artifacts.load(part, "semantic")
  artifact_paths.check(path, "semantic", artifact.fingerprint, expected)
  return embedders.SemanticEncoder(artifact, **options)


def _open_musicnn(path: str, **options: Any) -> protocols.Classifier:
  from musiclm_jax.evaluation import musicnn

  return musicnn.Musicnn.load(path, **options)


def _open_clap(path: str, **options: Any) -> protocols.TextEmbedder:
  from musiclm_jax.evaluation import clap

  return clap.Clap.load(path, **options)


def _open_hub(name: str) -> Callable[..., protocols.Listener]:
  """What opens the SavedModel of a class of `evaluation/hub_models.py`."""

  def open_it(path: str, **options: Any) -> protocols.Listener:
    from musiclm_jax.evaluation import hub_models

    try:
      from musiclm_jax.data import saved_models

      runner = saved_models.SavedModel(path)
    except ImportError as error:
      raise errors.UserError(
        f"a SavedModel needs TensorFlow, the extra [train] ({error})"
      ) from error
    return getattr(hub_models, name)(runner, **options)

  return open_it


def _layer(text: str) -> int | str:
  """A block's number, or a name such as 'contrastive/2'."""
  return int(text) if text.isascii() and text.isdigit() else text


_TIMES = {"window_secs": float, "hop_secs": float}
_SAVED_MODEL = "the folder of a SavedModel"
_PATCHES = {"hop_secs": float, "tail": str, "gain": str}
KINDS: Mapping[str, _Kind] = {
  "mulan": _Kind(_open_mulan, "a MuLan artefact or a bundle", {}),
  "w2v_bert": _Kind(
    _open_w2v_bert,
    "a semantic artefact or a bundle",
    {"layer": _layer, **_TIMES},
  ),
  "musicnn": _Kind(
    _open_musicnn, "what `musiclm import_tagger` wrote", {"hop_secs": float}
  ),
  "clap": _Kind(
    _open_clap, "the folder of a Hugging Face ClapModel", {"hop_secs": float}
  ),
  "vggish": _Kind(_open_hub("Vggish"), _SAVED_MODEL, _PATCHES),
  "yamnet": _Kind(_open_hub("Yamnet"), _SAVED_MODEL, _PATCHES),
  "trill": _Kind(_open_hub("Trill"), _SAVED_MODEL, {"layer": str}),
}


def parse(text: str) -> Spec:
  """Takes a spec apart.

  Args:
    text: `KIND:PATH`, then any number of `,NAME=VALUE`.

  Raises:
    UserError: if the form is another, or kind or option is not known.
  """
  kind, colon, rest = text.partition(":")
  if kind not in KINDS or not colon:
    raise errors.UserError(
      f"{text!r}: expected KIND:PATH with a kind of {', '.join(KINDS)}"
      f"{errors.nearest(kind, KINDS)}"
    )
  path, *pairs = rest.split(",")
  if not path:
    raise errors.UserError(
      f"{text!r}: expected {KINDS[kind].path} behind '{kind}:'"
    )
  options = {}
  known = KINDS[kind].options
  for pair in pairs:
    name, equals, value = pair.partition("=")
    if not equals or name not in known:
      choices = ", ".join(known) if known else "none"
      raise errors.UserError(
        f"{text!r}: {pair!r} is no option of {kind}: expected NAME=VALUE with "
        f"a name of {choices}{errors.nearest(name, known)}"
      )
    if name in options:
      raise errors.UserError(f"{text!r}: {name} is given twice")
    options[name] = value
  return Spec(kind, path, options)


def open_listener(text: str) -> protocols.Listener:
  """Opens what a spec names.

  Raises:
    UserError: if the spec is not understood, or its weights are missing,
      damaged or of another kind.
  """
  spec = parse(text)
  kind = KINDS[spec.kind]
  options = {}
  for name, value in spec.options.items():
    try:
      options[name] = kind.options[name](value)
    except ValueError as error:
      raise errors.UserError(f"{text!r}: {name}={value!r}: {error}") from error
  try:
    return kind.open(spec.path, **options)
  except errors.UserError:
    raise
  except ValueError as error:  # an option's value that a config refuses
    raise errors.UserError(f"{text!r}: {error}") from error


def open_embedder(text: str) -> protocols.Embedder:
  """Opens the embedder that a spec names; errors as `open_listener`."""
  found = open_listener(text)
  if not isinstance(found, protocols.Embedder):
    raise errors.UserError(f"{text!r} classifies only: expected an embedder")
  return found


def open_text_embedder(text: str) -> protocols.TextEmbedder:
  """Opens two towers that a spec names; errors as `open_listener`."""
  found = open_listener(text)
  if not isinstance(found, protocols.TextEmbedder):
    raise errors.UserError(
      f"{text!r} has no text tower: expected mulan or clap"
    )
  return found


def open_classifier(text: str) -> protocols.Classifier:
  """Opens the classifier that a spec names; errors as `open_listener`."""
  found = open_listener(text)
  if not isinstance(found, protocols.Classifier):
    raise errors.UserError(
      f"{text!r} does not classify: expected musicnn or yamnet"
    )
  return found
