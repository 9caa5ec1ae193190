# SPDX-License-Identifier: Apache-2.0
"""Malformed files and flags against the command line, in this process.

`Fuzz` draws cases from a seed, runs each through `cli.main.main` and says what
went wrong: a traceback, a bug's message, a failure without a line of its own,
or something written outside of the work directory.
"""

import contextlib
import importlib
import io
import json
import os
import pathlib
import shutil
import struct
import sys
import tempfile
import time
import zipfile

import numpy as np
import soundfile

MARK = "musiclm_fuzz_escaped"
RATE_HZ = 8000
_TEXTS = (
  "", " ", "\n", "a flute", "x" * 5000, "é ñ 音 🎵", "\udcff\udc80", "\u202e",
  "%s %n {0} {x!r}", "../../" + MARK, "<script>alert(1)</script>", "\x1b[2J",
  "nan", "1e999", "-1", "0", "[]", "{", "null", "a,b\n\"c", "--help", "\x07",
)  # fmt: skip
_LINES = (
  b"a flute", b"", b"   ", b"\xff\xfe\x00a\x00", b"\xc3\x28", b"\x00\x01\x02",
  b'{"prompt": "a"}', b'{"prompt": 5}', b'{"prompt": null}', b'{"prompt": []}',
  b'{"prompt": ""}', b'{"prompt": {"a": 1}}', b'{"text": "a"}', b"[1, 2]",
  b'"a"', b"{", b"null", b"[" * 5000, b'{"prompt": "\\ud800"}', b"a" * 20000,
  b"ytid,start_s,caption", b'-0SdAVK79lg,30,"[\'a\', __import__(\'os\')]"',
  b'x,"unclosed', b",,,,,,,", b"=cmd|' /C calc'!A0", b"__import__('os')",
)  # fmt: skip
_STORIES = (
  "- {at: 0, text: a flute}\n- {at: 1, text: drums}",
  "- {at: 0, text: a flute}\n- {at: 0.5, text: drums}",
  "- {at: -1, text: a}", "- {at: .nan, text: a}", "- {at: .inf, text: a}",
  "- {at: 1e400, text: a}", "- {at: " + "9" * 400 + ", text: a}",
  "- {at: '0', text: a}", "- {at: true, text: a}", "- {at: [0], text: a}",
  "- {at: 0, text: 5}", "- {at: 0, text: ''}", "- {at: 0, text: [a, b]}",
  "- {at: 0}", "- {text: a}", "- a", "a", "", "{}", "[]", "null", "- - - - -",
  "- {at: 0, text: a, transition_secs: -1}",
  "- {at: 0, text: a, transition_secs: 3}", "- {at: 0, text: a, colour: red}",
  "prompts: 5", "prompts: []", "{prompts: [{at: 0, text: a}], speed: 2}",
  "!!python/object/apply:os.system ['touch /tmp/" + MARK + "']",
  "- {at: !!python/name:os.system , text: a}", "- {at: 0, text: *missing}",
  "&a [*a]", "- &a {at: 0, text: *a}", "\t- {at: 0}", "- {at: 0, text: a",
  "? [a, b]\n: c", "- {[1, 2]: 3}", "--- a\n--- b", "%YAML 9.9\n---\n- a",
  "- {at: 2020-01-01, text: a}", "- {at: 1:30, text: a}", "[" * 3000,
  # Each letter stands for nine of the one before: 9 ** 9 in all.
  "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [
      f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]"
      for before, after in zip("abcdefgh", "bcdefghi")
    ]
    + ["prompts: [*i]"]
  ),
  "\n".join(
    ["- &a [x, x, x, x, x, x, x, x, x]"]
    + [
      f"- &{after} [{', '.join([f'*{before}'] * 9)}]"
      for before, after in zip("abcdefgh", "bcdefghi")
    ]
    + ["- {at: 0, text: *i}"]
  ),
)  # fmt: skip
_NUMBERS = (
  "-1",
  "0",
  "nan",
  "inf",
  "1e308",
  "x",
  "",
  "0.0001",
  "9" * 30,
  "1.5",
)
_FLAGS = (
  "seconds", "seed", "batch_size", "num_candidates", "keep", "top_k", "top_p",
  "temperatures", "guidance", "max_prompts", "num_samples",
)  # fmt: skip


class Fuzz:
  """Cases, drawn one after the other.

  Attributes:
    work: the only folder that may be written to.
    kinds: what is asked, by name.
  """

  def __init__(
    self,
    root: pathlib.Path,
    bundle: pathlib.Path,
    seed: int = 0,
    has_recognize: bool = True,
  ):
    """Prepares good files to spoil.

    Args:
      root: an empty folder; the work directory lies deep in it.
      bundle: folder of a small bundle.
      seed: of all cases.
      has_recognize: whether `recognize` is asked, which loads TensorFlow.
    """
    self.work = root / "a" / "b" / "work"
    self.work.mkdir(parents=True, exist_ok=True)
    self._root, self._bundle = root, bundle
    self._generator = np.random.default_rng(seed)
    self.kinds = (
      self._prompts, self._story, self._continuation, self._melody,
      self._audio_prompt, self._flags, self._describe, self._embed,
      self._texts, self._search, self._encode, self._decode,
    )  # fmt: skip
    if has_recognize:
      self.kinds += (self._recognize,)
    self._made: dict[str, bytes] = {}
    self._count = 0
    self._good()

  def _good(self) -> None:
    """A generated file, codes and an index, as the commands write them."""
    # A second of sound repeats nothing exactly.
    # Libraries make folders of their own when they are first loaded.
    importlib.import_module("matplotlib.font_manager")
    time_secs = np.arange(2 * RATE_HZ) / RATE_HZ
    sound = np.sin(2 * np.pi * (300 + 50 * time_secs) * time_secs) / 3
    path = self.work / "good.wav"
    soundfile.write(path, sound, RATE_HZ)
    for arguments in (
      ("codec", "encode", path, self.work / "good.npz",
       f"--codec={self._bundle}"),
      ("embed", path, f"--output={self.work / 'index'}",
       f"--mulan={self._bundle}"),
      ("generate", f"--bundle={self._bundle}", "--prompt=a", "--seconds=0.5",
       f"--output={self.work / 'made.wav'}"),
    ):  # fmt: skip
      code, _, text = run([str(one) for one in arguments])
      if code:
        raise RuntimeError(f"{arguments}: {text}")
    for name in ("made.wav", "good.npz"):
      self._made[name] = (self.work / name).read_bytes()

  # --- What is drawn.

  def _one(self, values):
    return values[int(self._generator.integers(len(values)))]

  def _number(self) -> str:
    """Mostly a good one."""
    return "1" if self._chance(0.7) else self._one(_NUMBERS)

  def _chance(self, share: float) -> bool:
    return bool(self._generator.random() < share)

  def _path(self, suffix: str, content: bytes) -> str:
    names = ("in", "é ñ 音", "a b'c", "-x", "..a", "x" * 200)
    path = self.work / f"{self._count}_{self._one(names)}{suffix}"
    path.write_bytes(content)
    return str(path)

  def _spoil(self, data: bytes) -> bytes:
    """Bytes with some lost or changed."""
    data = bytearray(data)
    match self._generator.integers(6):
      case 0:
        del data[self._generator.integers(0, len(data)) :]
      case 1:
        for place in self._generator.integers(0, min(100, len(data)), 6):
          data[place] = self._generator.integers(0, 256)
      case 2:
        place = int(self._generator.integers(0, 60))
        data[place : place + 4] = struct.pack("<I", 0xFFFFFFF0)
      case 3:
        for place in self._generator.integers(0, len(data), 30):
          data[place] = self._generator.integers(0, 256)
      case 4:
        data = data[: self._generator.integers(0, 60)] * 3
      case 5:
        place = int(self._generator.integers(0, len(data)))
        data[place:place] = self._generator.bytes(40)
    return bytes(data)

  def _sound(self) -> bytes:
    """Audio that is odd, spoilt, or none."""
    if self._chance(0.15):
      return self._one(_LINES) * 20
    size = int(self._one((0, 1, 100, 3999, 8000, 20000)))
    kind = self._one(("WAV", "WAV", "FLAC", "OGG", "MP3"))
    # The encoders of libsndfile crash for odd sounds; its decoders are asked.
    is_lossy = kind in ("OGG", "MP3")
    size = max(size, 4000) if is_lossy else size
    waveform = self._generator.normal(size=size).astype(np.float32) / 10
    subtype = None
    if kind == "WAV":
      subtype = self._one(("FLOAT", "PCM_16", "PCM_U8", "DOUBLE", "ULAW"))
    if self._chance(0.3) and not is_lossy:
      waveform[size // 2 :] = self._one((np.nan, np.inf, 0.0, 1e30, -5.0))
    if self._chance(0.2) and not is_lossy:
      waveform = np.stack([waveform] * int(self._one((2, 6))), -1)
    rate = int(self._one((8000, 8000, 1, 44100, 192000, 768000, 11025)))
    rate = 16000 if is_lossy else rate
    buffer = io.BytesIO()
    try:
      soundfile.write(buffer, waveform, rate, format=kind, subtype=subtype)
    except Exception:  # not in this format
      buffer = io.BytesIO(b"RIFF\0\0\0\0WAVEfmt ")
    data = buffer.getvalue()
    return self._spoil(data) if self._chance(0.8) and data else data

  def _audio(self) -> str:
    if self._chance(0.08):
      return self._one(
        ("none.wav", "/dev/null", str(self.work), "/etc/passwd", "x" * 5000)
      )
    suffix = self._one((".wav", ".wav", ".flac", ".ogg", ".mp3", ".WAV"))
    return self._path(suffix, self._sound())

  # --- Kinds of cases: arguments of one call.

  def _generate(self, *arguments: str) -> list[str]:
    out = self.work / f"{self._count}_out.wav"
    target = f"--output={out}"
    if self._chance(0.3):
      target = f"--output_dir={out.with_suffix('')}"
    return ["generate", f"--bundle={self._bundle}", target, *arguments]

  def _prompts(self):
    lines = [self._one(_LINES) for _ in range(self._generator.integers(0, 4))]
    content = self._one((b"\n", b"\r\n", b"\r", b"\x85")).join(lines)
    path = self._path(self._one((".txt", ".jsonl", ".jsonl", ".csv")), content)
    return self._generate(f"--prompts={path}", "--seconds=0.5")

  def _story(self):
    content = self._one(_STORIES).encode()
    if self._chance(0.2):
      content = self._spoil(content or b"- a")
    path = self._path(self._one((".yaml", ".json")), content)
    return self._generate(f"--story={path}", "--seconds=2")

  def _continuation(self):
    flag = self._one(("continue_from", "continue_from", "resynthesize"))
    return self._generate(f"--{flag}={self._audio()}", "--seconds=4")

  def _melody(self):
    return self._generate(
      f"--melody={self._audio()}", "--prompt=a", "--seconds=0.5"
    )

  def _audio_prompt(self):
    if self._chance(0.5):
      return self._generate(f"--audio_prompt={self._audio()}", "--seconds=0.5")
    weight = self._number()
    return self._generate(f"--mix={weight}:{self._audio()}", "--seconds=0.5")

  def _flags(self):
    values = {"seconds": "0.5", "prompt": self._one(_TEXTS)}
    for name in self._generator.choice(_FLAGS, 2, replace=False):
      values[str(name)] = self._one(_NUMBERS)
    if self._chance(0.2):
      values["negative_prompt"] = self._one(_TEXTS)
    return self._generate(*(f"--{n}={value}" for n, value in values.items()))

  def _describe(self):
    data = self._made["made.wav"]
    if self._chance(0.5):
      # Inside of what the file says of itself.
      place = data.find(b"ICMT") + int(self._generator.integers(0, 200))
      data = data[:place] + self._one(_LINES)[:60] + data[place + 60 :]
    elif self._chance(0.2):
      deep = b"[" * 100_000
      chunk = b"INFOICMT" + struct.pack("<I", len(deep)) + deep
      data = data[:12] + b"LIST" + struct.pack("<I", len(chunk)) + chunk
    else:
      data = self._spoil(data)
    return ["describe", self._path(".wav", data)]

  def _embed(self):
    out = self._one(("out.npz", "out.csv", "out", "out/x/y.npz"))
    return [
      "embed", self._audio(), f"--output={self.work}/{self._count}_{out}",
      f"--mulan={self._bundle}",
      *(["--windows"] if self._chance(0.3) else []),
    ]  # fmt: skip

  def _texts(self):
    content = b"\n".join(self._one(_LINES) for _ in range(3))
    path = self._path(self._one((".txt", ".jsonl")), content)
    return [
      "embed", f"--texts={path}", f"--text={self._one(_TEXTS)}",
      f"--output={self.work / f'{self._count}_out.npz'}",
      f"--mulan={self._bundle}",
    ]  # fmt: skip

  def _search(self):
    index = self.work / f"{self._count}_index"
    shutil.copytree(self.work / "index", index)
    if self._chance(0.7):
      victim = self._one(sorted(index.iterdir()))
      if victim.name == "index.json" and self._chance(0.6):
        header = json.loads(victim.read_text())
        place = header["config"] if self._chance(0.7) else header
        key = self._one(sorted(place))
        place[key] = self._one((None, -1, "x", [], 1e9, {}, True, [[1]]))
        victim.write_text(json.dumps(header))
      elif victim.suffix == ".npz" and self._chance(0.6):
        victim.write_bytes(self._other_arrays(victim.read_bytes()))
      else:
        victim.write_bytes(self._spoil(victim.read_bytes()))
    asked = [self._one(_TEXTS)]
    if self._chance(0.5):
      asked = [f"--audio={self._audio()}"]
    if self._chance(0.3):
      page = self.work / f"{self._count}.html"
      asked += [f"--html={page}", "--embed_audio"]
    return [
      "search", f"--index={index}", f"--mulan={self._bundle}",
      f"--top_k={self._number()}", *asked,
    ]  # fmt: skip

  def _encode(self):
    out = self._one(("out.npz", "out.wav", "out"))
    return [
      "codec", "encode", self._audio(), f"{self.work}/{self._count}_{out}",
      f"--codec={self._bundle}",
      f"--num_codebooks={self._number()}",
    ]  # fmt: skip

  def _other_arrays(self, data: bytes) -> bytes:
    """An .npz in which one array is another."""
    with np.load(io.BytesIO(data)) as file:
      arrays = dict(file)
    name = self._one(sorted(arrays))
    if self._chance(0.15):
      del arrays[name]
    else:
      arrays[name] = self._one(
        (
          np.zeros((0, 3), np.uint8), np.full((5, 3), 255, np.uint8),
          np.float64("nan"), np.int64(-1), np.int64(0), np.int64(2**62),
          np.array("x"), np.array(["a", "b"]), np.zeros((2, 2, 2)),
          np.array(3.5), np.array(True), np.array("../../" + MARK),
        )
      )  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()

  def _decode(self):
    data = self._made["good.npz"]
    if self._chance(0.7):
      data = self._other_arrays(data)
    elif self._chance(0.2):
      buffer = io.BytesIO()
      with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"../../{MARK}.npy", b"x")
      data = buffer.getvalue()
    else:
      data = self._spoil(data)
    out = self._one(("out.wav", "out.flac", "out.txt"))
    return [
      "codec", "decode", self._path(".npz", data),
      f"{self.work}/{self._count}_{out}", f"--codec={self._bundle}",
    ]  # fmt: skip

  def _recognize(self):
    folder = self.work / f"{self._count}_melody"
    folder.mkdir()
    for name in ("config.json", "artifact.json", "weights.safetensors"):
      if self._chance(0.7):
        (folder / name).write_bytes(self._one((*_LINES, b'{"kind": "melody"}')))
    return [
      "recognize", f"--melody={folder}", f"--corpus_dir={folder}",
      f"--output_dir={self.work / f'{self._count}_out'}",
    ]  # fmt: skip

  # --- Running them.

  def case(self) -> dict:
    """Runs the next case.

    Returns:
      'arguments', 'code', 'secs', 'text' (standard error), and 'wrong': what
      should not be, a list of texts.
    """
    kind = self.kinds[self._count % len(self.kinds)]
    arguments = kind()
    self._count += 1
    # A crash of the process can be traced to its case by this.
    (self._root / "case.json").write_text(json.dumps(arguments))
    began = time.monotonic()
    with _watching(self.work) as written:
      code, out, text = run(arguments)
    wrong = [f"wrote {path}" for path in written]
    for name, stream in (("output", out), ("error", text)):
      if "Traceback" in stream or "internal error" in stream:
        wrong.append(f"a traceback on standard {name}")
    if code not in (0, 1, 2):
      wrong.append(f"exit code {code}")
    own = [line for line in text.splitlines() if line.startswith("musiclm")]
    if code and not own:
      wrong.append("it failed without a word")
    if any(len(line) > 8000 for line in own):
      wrong.append("a line of more than 8000 characters")
    outside = [
      path
      for path in self._root.rglob("*")
      if path.is_file()
      and self.work not in path.parents
      and path.name != "case.json"
    ]
    wrong += [f"wrote {path}" for path in outside]
    return {
      "kind": kind.__name__.strip("_"),
      "arguments": arguments,
      "code": code,
      "secs": time.monotonic() - began,
      "text": text,
      "wrong": wrong,
    }


def run(arguments: list[str]) -> tuple[int | None, str, str]:
  """Exit code, standard output and standard error of one call."""
  from musiclm_jax.cli import main

  # Encoded as a terminal's streams are.
  out = io.TextIOWrapper(io.BytesIO(), "utf-8")
  err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      code = main.main(arguments)
    except SystemExit as exit_:
      code = exit_.code
  texts = []
  for stream in (out, err):
    stream.flush()
    texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))
  return code, *texts


class _Watch:
  """What Python code opened for writing while it is asked."""

  def __init__(self):
    self.work: pathlib.Path | None = None
    self.written: list[str] = []
    self._is_hooked = False

  def hook(self) -> None:
    """Once, for audit hooks stay."""
    if not self._is_hooked:
      self._is_hooked = True
      # Asked first by a command, Python tries by a file where it may write.
      tempfile.gettempdir()
      sys.addaudithook(self._heard)

  def _heard(self, event: str, arguments: tuple) -> None:
    if self.work is None:
      return
    if event == "open":
      path, mode, flags = arguments
      is_write = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
      if not is_write or not isinstance(path, (str, bytes)):
        return
      targets = [path]
    elif event in ("os.rename", "os.mkdir", "os.link", "os.symlink"):
      targets = [one for one in arguments[:2] if isinstance(one, (str, bytes))]
    elif event in ("subprocess.Popen", "os.system", "socket.connect"):
      self.written.append(f"by {event} {arguments[:1]}")
      return
    else:
      return
    for target in targets:
      path = os.path.abspath(os.fsdecode(target))
      inside = path == str(self.work) or path.startswith(f"{self.work}{os.sep}")
      if not inside and not path.startswith("/dev/"):
        self.written.append(path)


_WATCH = _Watch()


@contextlib.contextmanager
def _watching(work: pathlib.Path):
  """Within it, paths outside of `work` that are written to are listed."""
  _WATCH.hook()
  _WATCH.work, _WATCH.written = work, []
  try:
    yield _WATCH.written
  finally:
    _WATCH.work = None
