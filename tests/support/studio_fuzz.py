# SPDX-License-Identifier: Apache-2.0
"""Malformed uploads and requests against a studio that is running."""

import io
import json
import pathlib
import struct

import httpx
import numpy as np
import soundfile

MARK = "musiclm_fuzz_escaped"
# In the order of the page's fields; a small bundle has no melody, no guidance.
FORM = ["Prompt", "a flute", "0 a", 0, None, 1, 1, 0]
_NAMES = (
  "a.wav", f"../../{MARK}.wav", f"..\\..\\{MARK}.wav", f"/tmp/{MARK}.wav",
  "", ".", "..", "a\0b.wav", "x" * 300 + ".wav", "<b>.wav", "a.html", "a.py",
  "%2e%2e%2f.wav", "é ñ 音.wav", "a\r\nx: y.wav", '"; filename="b.wav',
)  # fmt: skip
_PATHS = (
  "/etc/passwd", "../../etc/passwd", "", "/", "a.wav", "/dev/zero", "file:///",
  "http://127.0.0.1:1/a.wav", "https://example.invalid/a.wav", "//x/y",
  "/proc/self/environ", "x" * 9000, "\0",
)  # fmt: skip
_VALUES = (
  None, True, -1, 0, 1, 1e308, 10**30, "", "x" * 5000, "0 a\n1 b", "\ud800",
  [], {}, {"path": "/etc/passwd"}, [[[]]], "<script>", "Prompt", "Story",
  "Continue",
)  # fmt: skip
_ROUTES = (
  "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/file=http://x/a",
  "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd",
  "/gradio_api/file=/proc/self/environ", "/static/../../../etc/passwd",
  "/assets/..%2f..%2f..%2fetc/passwd", "/monitoring", "/gradio_api/runs",
  "/gradio_api/run-history/buckets", "/gradio_api/deep_link", "/x", "/%00",
)  # fmt: skip


def _sound(generator: np.random.Generator) -> bytes:
  """Bytes that are nearly audio."""
  waveform = generator.normal(size=8000).astype(np.float32) / 10
  kind = ("WAV", "FLAC", "OGG", "MP3")[generator.integers(4)]
  if kind == "WAV" and generator.random() < 0.3:
    waveform[generator.integers(8000) :] = np.nan
  subtype = "FLOAT" if kind == "WAV" else None
  buffer = io.BytesIO()
  soundfile.write(buffer, waveform, 8000, format=kind, subtype=subtype)
  data = bytearray(buffer.getvalue())
  match generator.integers(6):
    case 0:
      del data[generator.integers(0, len(data)) :]
    case 1:
      for place in generator.integers(0, min(80, len(data)), 6):
        data[place] = generator.integers(0, 256)
    case 2:
      place = int(generator.integers(0, 60))
      data[place : place + 4] = struct.pack("<I", 0xFFFFFFF0)
    case 3:
      data = bytearray(generator.bytes(generator.integers(0, 5000)))
    case 4:
      data = bytearray(b"just a text, no music\n" * 20)
  return bytes(data)


def call(
  client: httpx.Client, name: str, data: list, secs: float = 120.0
) -> str:
  """Everything that an endpoint answers, as text."""
  body = json.dumps({"data": data})
  headers = {"content-type": "application/json"}
  asked = client.post(f"/gradio_api/call/{name}", content=body, headers=headers)
  event = asked.json().get("event_id") if asked.status_code == 200 else None
  if event is None:
    return asked.text
  answer = client.get(f"/gradio_api/call/{name}/{event}", timeout=secs)
  return answer.text


def upload(client: httpx.Client, name: str, data: bytes) -> httpx.Response:
  """Uploads one file, as the page does."""
  return client.post("/gradio_api/upload", files={"files": (name, data)})


def _file(path: str) -> dict:
  return {"path": path, "meta": {"_type": "gradio.FileData"}}


def fuzz(address: str, count: int, num_fields: int, seed: int = 0) -> dict:
  """Asks `count` odd things.

  Args:
    address: of the studio.
    count: requests.
    num_fields: that the endpoint 'generate' has.
    seed: of what is asked.

  Returns:
    All answers (texts), by kind of request.
  """
  generator = np.random.default_rng(seed)

  def one(values):
    return values[generator.integers(len(values))]

  answers = {kind: [] for kind in ("upload", "path", "form", "route", "body")}
  with httpx.Client(base_url=address, timeout=120) as client:
    for index in range(count):
      kind = list(answers)[(0, 0, 1, 2, 3, 4)[index % 6]]
      try:
        if kind == "upload":
          made = upload(client, one(_NAMES), _sound(generator))
          answers[kind].append(made.text)
          if made.status_code == 200:
            path = made.json()[0]
            answers[kind].append(call(client, "inspect", [_file(path)]))
        elif kind == "path":
          answers[kind].append(call(client, "inspect", [_file(one(_PATHS))]))
        elif kind == "form":
          data = [one(_VALUES) for _ in range(num_fields)]
          answers[kind].append(call(client, "generate", data))
        elif kind == "route":
          answers[kind].append(client.get(one(_ROUTES)).text)
        else:
          body = generator.bytes(50) if index % 2 else b'{"data": '
          answers[kind].append(
            client.post("/gradio_api/queue/join", content=body).text
          )
      except (httpx.InvalidURL, UnicodeError, ValueError):
        continue  # Not even sent.
      except httpx.TransportError as error:
        answers[kind].append(type(error).__name__)
  return answers


def harm(answers: dict, folder: pathlib.Path, work: pathlib.Path) -> list[str]:
  """What answers told that they should not, and what lies where it should not.

  Args:
    answers: of `fuzz`.
    folder: around the work directory.
    work: the only folder that may be written to.
  """
  text = "\n".join(sum(answers.values(), []))
  found = [
    f"an answer has {leaked!r}"
    for leaked in ("Traceback", "root:", "site-packages", "PYTHONPATH")
    if leaked in text
  ]
  paths = list(folder.rglob("*")) + list(pathlib.Path("/tmp").glob(f"*{MARK}*"))
  for path in paths:
    # Nothing of this machine is copied to where visitors may read.
    if path.name in ("passwd", "environ", "zero"):
      found.append(f"copied {path}")
    if path.is_file() and work not in path.parents:
      found.append(f"wrote {path}")
  return found
