# SPDX-License-Identifier: Apache-2.0
"""Gin files to Python objects, with errors a person can act on.

Files and `--gin.NAME=value` overrides flow in; a checked configuration with
the place each value comes from flows out. An unknown, unused or missing
binding is an error that names the nearest valid one.
"""

import dataclasses
import importlib
import inspect
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser
from musiclm_jax.core import errors

COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class _Reference:
  """`@selector` or `@selector()` in a file."""

  selector: str
  evaluate: bool

  def __repr__(self) -> str:
    return f"@{self.selector}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class _Macro:
  """`%NAME` in a file."""

  name: str

  def __repr__(self) -> str:
    return f"%{self.name}"


class _Delegate(config_parser.ParserDelegate):
  """Keeps references as text; gin itself resolves them later."""

  def configurable_reference(self, scoped_name: str, evaluate: bool) -> Any:
    return _Reference(scoped_name, evaluate)

  def macro(self, scoped_name: str) -> Any:
    return _Macro(scoped_name)


@dataclasses.dataclass(frozen=True)
class Binding:
  """One `key = value` and where it stands.

  Attributes:
    key: 'NAME' of a macro or '[scope/]selector.argument'.
    value: parsed value; references and macros stay symbolic.
    place: 'file:line' or 'command line'.
  """

  key: str
  value: Any
  place: str

  @property
  def is_macro(self) -> bool:
    return "." not in self.key


@dataclasses.dataclass(frozen=True)
class Resolved:
  """A checked configuration, already loaded into gin.

  Attributes:
    bindings: by key, the last binding wins.
    overridden: by key, the bindings that lost, in order.
  """

  bindings: dict[str, Binding]
  overridden: dict[str, list[Binding]]


def search_paths(extra: Sequence[str] = ()) -> list[str]:
  """Folders that gin files are looked for in, the user's first."""
  root = pathlib.Path(__file__).resolve().parents[2]
  # A checkout, or the installed package.
  shipped = [root / "gin", root / "musiclm_jax_gin"]
  return [*extra, ".", *(str(path) for path in shipped if path.is_dir())]


def _find(name: str, paths: Sequence[str]) -> pathlib.Path:
  for folder in [""] if os.path.isabs(name) else paths:
    path = pathlib.Path(folder) / name
    if path.is_file():
      return path
  known = [
    str(path.relative_to(folder))
    for folder in paths
    if folder != "."
    for path in sorted(pathlib.Path(folder).rglob("*.gin"))
  ]
  raise errors.UserError(
    f"no gin file {name!r} in {list(paths)}{errors.nearest(name, known)}"
  )


def _statements(path: pathlib.Path, paths: Sequence[str]) -> Iterator[Any]:
  """Statements of a file and of its includes, in the order gin takes them."""
  with path.open() as file:
    try:
      for statement in config_parser.ConfigParser(file, _Delegate()):
        if isinstance(statement, config_parser.IncludeStatement):
          yield from _statements(_find(statement.filename, paths), paths)
        else:
          yield path, statement
    except SyntaxError as error:
      raise errors.UserError(
        f"{path}:{error.lineno}: not gin syntax: {(error.text or '').strip()}"
      ) from error


def _key(statement: Any) -> str:
  scope = f"{statement.scope}/" if statement.scope else ""
  argument = f".{statement.arg_name}" if statement.arg_name else ""
  return f"{scope}{statement.selector}{argument}"


def _symbols(value: Any) -> Iterator[Any]:
  """References and macros anywhere inside a value."""
  if isinstance(value, (_Reference, _Macro)):
    yield value
  elif isinstance(value, dict):
    for item in (*value.keys(), *value.values()):
      yield from _symbols(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from _symbols(item)


def _literal(text: str) -> str:
  """A command-line value as gin text: bare words become strings."""
  try:
    parser = config_parser.ConfigParser(f"x = {text}", _Delegate())
    list(parser)
    return text
  except SyntaxError:
    return repr(text)


def _split_override(override: str) -> tuple[str, str]:
  if "=" not in override:
    raise errors.UserError(
      f"--gin.{override}: expected --gin.NAME=value or "
      "--gin.module.Config.field=value"
    )
  key, value = override.split("=", 1)
  return key.strip(), _literal(value.strip())


class _Loader:
  """Collects statements of files and overrides, then feeds gin."""

  def __init__(self, paths: Sequence[str]):
    self._paths = paths
    self.imports: dict[str, None] = {}
    self.bindings: dict[str, Binding] = {}
    self.overridden: dict[str, list[Binding]] = {}

  def _add(self, binding: Binding) -> None:
    if binding.key in self.bindings:
      self.overridden.setdefault(binding.key, []).append(
        self.bindings.pop(binding.key)
      )
    self.bindings[binding.key] = binding

  def read_file(self, name: str) -> None:
    """Collects a file with its includes."""
    for path, statement in _statements(_find(name, self._paths), self._paths):
      place = f"{path}:{statement.location.line_num}"
      if isinstance(statement, config_parser.ImportStatement):
        self.imports[statement.format()] = None
      elif isinstance(statement, config_parser.BindingStatement):
        self._add(Binding(_key(statement), statement.value, place))

  def override(self, override: str) -> None:
    """Takes one `NAME=value` of the command line."""
    key, text = _split_override(override)
    known = set(self.bindings) | self._referenced_macros()
    is_macro = "." not in key
    if is_macro and key not in known:
      macros = [name for name in known if "." not in name]
      raise errors.UserError(
        f"unknown gin binding {key!r} ({COMMAND_LINE})"
        f"{errors.nearest(key, macros)}"
      )
    statement = next(
      iter(config_parser.ConfigParser(f"x = {text}", _Delegate()))
    )
    self._add(Binding(key, statement.value, COMMAND_LINE))

  def _referenced_macros(self) -> set[str]:
    return {
      symbol.name
      for binding in self.bindings.values()
      for symbol in _symbols(binding.value)
      if isinstance(symbol, _Macro)
    }

  def leave_out(self, keys: Sequence[str], root: str) -> None:
    """Makes bindings None and drops those that nothing reads any more."""
    if not keys:
      return
    for key in keys:
      if key in self.bindings:
        place = self.bindings[key].place
        self.bindings[key] = Binding(key, None, place)
    kept = _reachable(self, root)
    self.bindings = {k: b for k, b in self.bindings.items() if k in kept}

  def modules(self) -> dict[str, Any]:
    """Imported modules by the name gin files use for them."""
    modules = {}
    for text in self.imports:
      match = re.fullmatch(r"from (\S+) import (\w+)(?: as (\w+))?", text)
      if match and match[1] != "__gin__":
        module = importlib.import_module(f"{match[1]}.{match[2]}")
        modules[match[3] or match[2]] = module
    return modules

  def text(self) -> str:
    """Everything as one gin text."""
    lines = list(self.imports)
    lines += [f"{b.key} = {b.value!r}" for b in self.bindings.values()]
    return "\n".join(lines) + "\n"


def _check_selectors(loader: _Loader, modules: dict[str, Any]) -> None:
  """Every selector exists and takes the argument, or the nearest is named."""
  for binding in loader.bindings.values():
    for symbol in _symbols(binding.value):
      if isinstance(symbol, _Reference):
        _resolve(symbol.selector.split("/")[-1], binding.place, modules)
    if binding.is_macro:
      continue
    selector, argument = binding.key.split("/")[-1].rsplit(".", 1)
    target = _resolve(selector, binding.place, modules)
    arguments = list(inspect.signature(target).parameters)
    if argument not in arguments:
      raise errors.UserError(
        f"unknown gin binding {binding.key!r} ({binding.place}): {selector} "
        f"has no argument {argument!r}{errors.nearest(argument, arguments)}"
      )


def _resolve(selector: str, place: str, modules: dict[str, Any]) -> Any:
  module_name, _, name = selector.partition(".")
  if module_name not in modules:
    raise errors.UserError(
      f"unknown gin module {module_name!r} in {selector!r} ({place})"
      f"{errors.nearest(module_name, modules)}"
    )
  module = modules[module_name]
  if not hasattr(module, name):
    names = [n for n in vars(module) if not n.startswith("_")]
    raise errors.UserError(
      f"unknown gin binding {selector!r} ({place}): no {name!r} in "
      f"{module_name}{errors.nearest(name, names)}"
    )
  return getattr(module, name)


def _check_required(loader: _Loader) -> None:
  missing = [
    binding.key
    for binding in loader.bindings.values()
    if "gin.REQUIRED" in repr(binding.value)
  ]
  undefined = sorted(loader._referenced_macros() - set(loader.bindings))
  undefined = [name for name in undefined if not name.startswith("gin.")]
  if missing or undefined:
    names = [*missing, *undefined]
    raise errors.UserError(
      f"gin binding(s) {', '.join(names)} have no value: pass "
      + " ".join(f"--gin.{name}=..." for name in names)
    )


def _reachable(loader: _Loader, root: str) -> set[str]:
  """Keys that calling `root` reads, through references and macros."""
  by_selector: dict[str, list[str]] = {}
  for key, binding in loader.bindings.items():
    name = key if binding.is_macro else key.rsplit(".", 1)[0]
    by_selector.setdefault(name, []).append(key)
  found: set[str] = set()
  queue = [root]
  while queue:
    name = queue.pop()
    # A scoped reference reads its own bindings and the unscoped ones.
    for candidate in {name, name.split("/")[-1]}:
      for key in by_selector.get(candidate, ()):
        if key in found:
          continue
        found.add(key)
        for symbol in _symbols(loader.bindings[key].value):
          queue.append(
            symbol.name if isinstance(symbol, _Macro) else symbol.selector
          )
  return found


def _check_unused(loader: _Loader, root: str) -> None:
  reachable = _reachable(loader, root)
  for key, binding in loader.bindings.items():
    if key not in reachable:
      raise errors.UserError(
        f"unused gin binding {key!r} ({binding.place}): nothing that {root} "
        f"builds reads it{errors.nearest(key, reachable)}"
      )


def resolve(
  files: Sequence[str],
  overrides: Iterable[str] = (),
  paths: Sequence[str] = (),
  root: str = "experiment.Experiment",
  without: Sequence[str] = (),
  fill: Mapping[str, Any] | None = None,
) -> Resolved:
  """Reads, checks and loads a configuration; touches no device.

  Args:
    files: gin files, later ones win.
    overrides: 'NAME=value' or 'module.Config.field=value' texts.
    paths: folders searched before the shipped ones.
    root: the configurable everything must be reachable from.
    without: keys that are None in what is loaded, with all that only they
      read; a value that only they need may be missing.
    fill: values of required macros that nobody gave.

  Returns:
    The bindings with their places; gin holds them for `build`.

  Raises:
    UserError: for a file, binding or value that does not fit.
  """
  loader = _Loader(search_paths(paths))
  for name in files:
    loader.read_file(name)
  for override in overrides:
    loader.override(override)
  modules = loader.modules()
  _check_selectors(loader, modules)
  _check_unused(loader, root)
  loader.leave_out(without, root)
  for key, value in (fill or {}).items():
    if "gin.REQUIRED" in repr(loader.bindings.get(key)):
      loader.bindings[key] = Binding(key, value, "filled in")
  _check_required(loader)
  gin.clear_config()
  try:
    gin.parse_config(loader.text())
  except (ValueError, SyntaxError, AttributeError) as error:
    raise errors.UserError(f"gin: {str(error).splitlines()[0]}") from error
  return Resolved(loader.bindings, loader.overridden)


def binds(files: Sequence[str], paths: Sequence[str], root: str) -> bool:
  """Whether files bind an argument of configurable `root`.

  Raises:
    UserError: if a file is missing, or is no gin.
  """
  loader = _Loader(search_paths(paths))
  for name in files:
    loader.read_file(name)
  return any(key.startswith(f"{root}.") for key in loader.bindings)


def build(root: Any) -> Any:
  """Calls configurable `root` with its gin bindings."""
  try:
    return gin.get_configurable(root)()
  except errors.UserError:
    raise
  except (ValueError, TypeError) as error:
    # gin appends where it was called from; the first line is the message.
    first = str(error).strip().splitlines()[0]
    raise errors.UserError(first) from error


def parse_macro(name: str) -> Any:
  """The value of macro `name` as gin resolves it now."""
  return gin.query_parameter(f"{name}/gin.macro.value")


def describe(resolved: Resolved) -> str:
  """A readable table: each value, where it comes from, what it replaced."""
  lines = []
  for key in sorted(
    resolved.bindings,
    key=lambda k: (not resolved.bindings[k].is_macro, k),
  ):
    binding = resolved.bindings[key]
    lines.append(f"{key} = {binding.value!r}    # {binding.place}")
    for lost in reversed(resolved.overridden.get(key, [])):
      lines.append(f"    # replaces {lost.value!r} from {lost.place}")
  return "\n".join(lines)
