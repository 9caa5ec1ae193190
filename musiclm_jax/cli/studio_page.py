# SPDX-License-Identifier: Apache-2.0
"""The studio's widgets and what they call: a studio and a queue in, a page out.

The only module that imports Gradio. It decides nothing: wishes are checked in
`studio_wishes`, made in `studio_session`, one at a time by `studio_queue`.
"""

import asyncio
import dataclasses
import re
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import gradio as gr

from musiclm_jax.cli import (
  studio_queue,
  studio_session,
  studio_views,
  studio_wishes,
)
from musiclm_jax.core import errors

_POLL_SECS = 0.3
# Uploads and copies of results that are older are deleted.
_CLEAN_SECS, _KEEP_SECS = 600, 3600
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
# Of all that Gradio serves. Among the rest are a proxy, redirections, a
# monitor, and a history of runs that can be kept elsewhere.
PATHS = re.compile(
  r"/|/(config|info|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?"
  r"|/(assets|static|svelte)/[\w./@-]+"
  r"|/gradio_api/(info|app_id|user|token|login_check|theme\.css|upload)/?"
  r"|/gradio_api/(upload_progress|startup-events|cancel|reset|config)/?"
  r"|/gradio_api/(queue|run|api|call|heartbeat)/[\w./-]+"
  r"|/gradio_api/file=/[^:]*"
)
_TITLE = "musiclm studio"
_STORY = "0:00 a calm flute\n0:05 a loud brass band"


def _take_uploads_only(
  widget: gr.blocks.Block, studio: studio_session.Studio
) -> None:
  """Makes a widget of the form refuse files that were not uploaded.

  Whatever the widget is, a request can name a file or an address for it, which
  Gradio would copy or fetch: a mounted page is not checked as a launched one.
  Set on the instance: of a subclass Gradio writes a stub beside this file.
  """
  move = widget.async_move_resource_to_block_cache

  async def move_upload(url_or_file_path: Any) -> str | None:
    # Raises for all that is no plain file of moderate size in the folder.
    await asyncio.to_thread(studio.check_upload, str(url_or_file_path))
    return await move(url_or_file_path)

  widget.async_move_resource_to_block_cache = move_upload


def _line(problem: Exception) -> str:
  """What a visitor is told; the log has the rest of what is a bug."""
  if isinstance(problem, errors.UserError):
    return str(problem)
  traceback.print_exception(problem, file=sys.stderr)
  return studio_queue.internal(problem)


class Page:
  """Handlers of one studio's page."""

  def __init__(self, studio: studio_session.Studio, queue: studio_queue.Queue):
    self._studio, self._queue = studio, queue
    self.fields: dict[str, Any] = {}

  def form(self, values: tuple[Any, ...]) -> studio_wishes.Form:
    """Values of the widgets in `fields`, in their order."""
    return studio_wishes.Form(**dict(zip(self.fields, values)))

  async def generate(
    self, request: gr.Request, *values: Any
  ) -> AsyncIterator[tuple]:
    """Asks for music; yields the status, and in the end what was made.

    Yields:
      Values of status, takes, choice, audio, spectrogram, details, download.
    """
    nothing = (gr.skip(),) * 6
    began = time.monotonic()
    visitor = request.session_hash or secrets.token_hex(8)
    try:
      plan = await asyncio.to_thread(self._studio.plan, self.form(values))
      task = self._queue.submit(
        visitor, lambda watcher: self._studio.make(plan, watcher)
      )
    except Exception as problem:
      yield studio_views.error(_line(problem)), *nothing
      return
    shown = None
    try:
      while not task.is_over:
        ahead = self._queue.num_ahead(task)
        status = studio_views.progress(task, ahead, time.monotonic() - began)
        if status != shown:
          shown = status
          yield status, *nothing
        await asyncio.sleep(_POLL_SECS)
    finally:
      if not task.is_over:  # The visitor has left.
        self._queue.stop(visitor)
    status = studio_views.progress(task, 0, time.monotonic() - began)
    if task.state != studio_queue.DONE:
      yield status, *nothing
      return
    takes = task.result
    labels = [
      studio_views.take_label(rank, take.seed, take.score)
      for rank, take in enumerate(takes, 1)
    ]
    choice = gr.Radio(
      choices=list(zip(labels, range(len(labels)))),
      value=0,
      visible=len(labels) > 1,
    )
    yield status, takes, choice, *self.show(takes, 0)

  def show(self, takes: list[studio_session.Take], index: Any) -> tuple:
    """One of the takes: audio, spectrogram, details, download."""
    is_index = isinstance(index, int) and 0 <= index < len(takes or ())
    if not is_index:
      return (gr.skip(),) * 4
    take = takes[index]
    return (
      str(take.path),
      gr.HTML(studio_views.figure(take.spectrogram), visible=True),
      take.settings,
      gr.DownloadButton(value=str(take.path), interactive=True),
    )

  @property
  def upload_hint(self) -> str:
    """What may be uploaded."""
    limits = self._studio.limits.uploads
    return studio_views.note(
      f"WAV, FLAC, OGG or MP3, up to {limits.max_secs:g} s and "
      f"{limits.max_bytes / (1 << 20):g} MB."
    )

  def cancel(self, request: gr.Request) -> None:
    """Stops what this visitor asked for."""
    self._queue.stop(request.session_hash or "")

  def inspect(self, path: Any) -> str:
    """What an upload is, or why it cannot be used."""
    if not path:
      return self.upload_hint
    try:
      return studio_views.note(self._studio.describe_upload(path))
    except Exception as problem:
      return studio_views.note(_line(problem), is_error=True)

  def timeline(self, text: Any, transition: Any, secs: Any) -> str:
    """A drawing of the story, or why it is none."""
    form = studio_wishes.Form(
      mode=studio_wishes.STORY,
      story=text,
      transition_secs=transition,
      secs=secs,
    )
    try:
      wish = studio_wishes.read(form, self._studio.limits)
      return studio_views.timeline(wish.story, wish.secs)
    except Exception as problem:
      return studio_views.note(_line(problem), is_error=True)


def _new_seed() -> int:
  return secrets.randbelow(studio_wishes.MAX_SEED)


def _modes(studio: studio_session.Studio) -> list[tuple[str, str]]:
  """What the bundle can do: labels and values."""
  if not studio.has_text:
    return [
      ("New music", studio_wishes.PROMPT),
      ("Continue audio", studio_wishes.CONTINUATION),
    ]
  return [
    ("Text", studio_wishes.PROMPT),
    ("Story", studio_wishes.STORY),
    ("Continue audio", studio_wishes.CONTINUATION),
  ]


def _upload_widget(page: Page, label: str, name: str) -> gr.Audio:
  widget = gr.Audio(
    label=label,
    sources=["upload", "microphone"],
    type="filepath",
    editable=False,
    buttons=[],
    elem_id=name,
  )
  note = gr.HTML(page.upload_hint, elem_id=f"{name}-note", padding=False)
  widget.change(page.inspect, widget, note, show_progress="hidden")
  return widget


def _asking(page: Page, studio: studio_session.Studio) -> None:
  """Widgets of the form; fills `page.fields`."""
  limits, fields = studio.limits, page.fields
  modes, default_secs = _modes(studio), min(10.0, limits.max_secs)
  mode = gr.Radio(
    modes, value=modes[0][1], show_label=False, elem_id="mode", container=False
  )
  fields["mode"] = mode
  told = (studio_wishes.PROMPT, studio_wishes.CONTINUATION)
  groups: list[tuple[gr.Column, tuple[str, ...]]] = []
  with gr.Column(visible=studio.has_text) as column:
    fields["prompt"] = gr.Textbox(
      label="Prompt",
      placeholder="A gentle solo flute, slow and high.",
      lines=2,
      max_length=limits.max_chars,
      elem_id="prompt",
    )
  if studio.has_text:
    groups.append((column, told))
  with gr.Column(visible=False) as column:
    fields["story"] = gr.Textbox(
      label="Story",
      info="A line for each prompt: when it sets in, and the text.",
      value=_STORY,
      lines=4,
      elem_id="story",
    )
    fields["transition_secs"] = gr.Slider(
      0, 5, 0, step=0.5, label="Crossing from prompt to prompt (s)"
    )
    drawn = gr.HTML(
      page.timeline(_STORY, 0, default_secs), elem_id="timeline", padding=False
    )
  groups.append((column, (studio_wishes.STORY,)))
  if studio.has_melody:
    with gr.Column() as column, gr.Accordion("Melody", open=False):
      fields["melody"] = _upload_widget(page, "Melody to follow", "melody")
    groups.append((column, (studio_wishes.PROMPT,)))
  with gr.Column(visible=False) as column:
    fields["continuation"] = _upload_widget(
      page, "Audio to continue", "continuation"
    )
  groups.append((column, (studio_wishes.CONTINUATION,)))
  if studio.has_guidance:
    with gr.Accordion("Guidance", open=False):
      fields["guidance"] = gr.Slider(
        1, studio_wishes.MAX_GUIDANCE, 1, step=0.5, label="Guidance"
      )
      fields["negative"] = gr.Textbox(
        label="Negative prompt", max_length=limits.max_chars
      )
  fields["secs"] = gr.Slider(
    1,
    limits.max_secs,
    default_secs,
    step=1,
    label="Length (s)",
    elem_id="secs",
  )
  fields["num_candidates"] = gr.Slider(
    1,
    limits.max_candidates,
    1,
    step=1,
    label="Candidates",
    visible=studio.has_text,
    elem_id="candidates",
  )
  with gr.Row():
    fields["seed"] = gr.Number(
      label="Seed",
      value=0,
      precision=0,
      minimum=0,
      maximum=studio_wishes.MAX_SEED,
      min_width=140,
      elem_id="seed",
    )
    dice = gr.Button("New seed", min_width=120, elem_id="new-seed")
  dice.click(_new_seed, None, fields["seed"], queue=False, api_name=False)
  columns = [column for column, _ in groups]
  mode.change(
    lambda value: [gr.Column(visible=value in of) for _, of in groups],
    mode,
    columns,
    queue=False,
    api_name=False,
    show_progress="hidden",
  )
  line = [fields[name] for name in ("story", "transition_secs", "secs")]
  gr.on(
    [mode.change, *(widget.change for widget in line)],
    page.timeline,
    line,
    drawn,
    queue=False,
    show_progress="hidden",
    trigger_mode="always_last",
  )


@dataclasses.dataclass(frozen=True)
class _Shown:
  """Widgets of the result, in the order of `Page.generate`."""

  status: gr.HTML
  takes: gr.State
  choice: gr.Radio
  audio: gr.Audio
  spectrogram: gr.HTML
  details: gr.JSON
  download: gr.DownloadButton

  def all(self) -> list[Any]:
    """For outputs of `Page.generate`."""
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _showing() -> _Shown:
  status = gr.HTML(studio_views.ready(), elem_id="status", padding=False)
  takes = gr.State([], time_to_live=_KEEP_SECS)
  choice = gr.Radio(
    [], label="Candidates, the best first", visible=False, elem_id="choice"
  )
  audio = gr.Audio(
    label="Music",
    interactive=False,
    buttons=[],
    elem_id="result",
    waveform_options=gr.WaveformOptions(show_recording_waveform=True),
  )
  spectrogram = gr.HTML(elem_id="spectrogram", visible=False, padding=False)
  download = gr.DownloadButton(
    "Download WAV", interactive=False, elem_id="download"
  )
  with gr.Accordion("How it was made", open=False):
    details = gr.JSON(show_label=False, elem_id="details")
  return _Shown(status, takes, choice, audio, spectrogram, details, download)


def build(
  studio: studio_session.Studio, queue: studio_queue.Queue
) -> gr.Blocks:
  """The page."""
  page = Page(studio, queue)
  with gr.Blocks(
    title=_TITLE,
    analytics_enabled=False,
    delete_cache=(_CLEAN_SECS, _KEEP_SECS),
  ) as blocks:
    gr.Markdown(f"# {_TITLE}")
    with gr.Row():
      with gr.Column(scale=5, min_width=320):
        _asking(page, studio)
        with gr.Row():
          make = gr.Button("Generate", variant="primary", elem_id="generate")
          stop = gr.Button("Cancel", elem_id="cancel")
      with gr.Column(scale=6, min_width=320):
        shown = _showing()
    for widget in (*page.fields.values(), shown.choice, shown.takes):
      _take_uploads_only(widget, studio)
    make.click(
      page.generate,
      list(page.fields.values()),
      shown.all(),
      api_name="generate",
      concurrency_limit=None,
      show_progress="hidden",
    )
    stop.click(page.cancel, None, None, queue=False, api_name="cancel")
    shown.choice.input(
      page.show,
      [shown.takes, shown.choice],
      [shown.audio, shown.spectrogram, shown.details, shown.download],
      queue=False,
      api_name=False,
      show_progress="hidden",
    )
  return blocks


def application(
  studio: studio_session.Studio, queue: studio_queue.Queue
) -> fastapi.FastAPI:
  """An ASGI application that serves the page, and fetches nothing."""
  blocks = build(studio, queue)
  app = gr.mount_gradio_app(
    fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
    blocks,
    path="/",
    footer_links=[],
    run_history=False,
    allowed_paths=[str(studio.results_dir.resolve())],
    show_error=False,
    max_file_size=studio.limits.uploads.max_bytes,
    ssr_mode=False,
    enable_monitoring=False,
    pwa=False,
    mcp_server=False,
    theme=gr.themes.Default(font=_FONTS, font_mono=_MONO),
    css=studio_views.STYLE,
  )
  # Gradio checks which files requests name only where this is set.
  blocks.has_launched = True
  return app
