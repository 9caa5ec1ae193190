# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the studio: options in, a server that answers out."""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Iterator

from musiclm_jax.audio import uploads
from musiclm_jax.cli import (
  serving,
  studio_guard,
  studio_queue,
  studio_session,
  studio_wishes,
)
from musiclm_jax.core import errors

TOKEN_VARIABLE = "MUSICLM_STUDIO_TOKEN"
# Beside the file itself, a form has boundaries and names.
_FORM_BYTES = 1 << 20


def limits(args: argparse.Namespace) -> studio_wishes.Limits:
  """Of the options.

  Raises:
    UserError: if one is out of range.
  """
  for name in ("max_seconds", "max_candidates", "max_waiting"):
    if not 1 <= getattr(args, name) <= 1e6:
      raise errors.UserError(
        f"--{name}={getattr(args, name)}: expected at least 1"
      )
  if not 0 < args.max_upload_mb <= 1e4:
    raise errors.UserError(
      f"--max_upload_mb={args.max_upload_mb}: expected above 0"
    )
  return studio_wishes.Limits(
    max_secs=args.max_seconds,
    max_candidates=args.max_candidates,
    uploads=uploads.Limits(
      max_bytes=round(args.max_upload_mb * (1 << 20)),
      max_secs=args.max_seconds,
    ),
  )


def check_installed() -> None:
  """Raises UserError unless what the page is made with is there."""
  if importlib.util.find_spec("gradio") is None:
    raise errors.UserError(
      "musiclm studio needs gradio: install the extra [studio] (docs/studio.md)"
    )


def set_environment(uploads_dir: pathlib.Path) -> None:
  """What Gradio reads when it is imported: nothing leaves, where files go."""
  os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False",
    GRADIO_TEMP_DIR=str(uploads_dir.resolve()),
    HF_HUB_OFFLINE="1",
  )


def application(
  studio: studio_session.Studio, queue: studio_queue.Queue, token: str
) -> studio_guard.Guard:
  """The page behind its guard."""
  set_environment(studio.uploads_dir)
  from musiclm_jax.cli import studio_page

  most = studio.limits.uploads.max_bytes + _FORM_BYTES
  page = studio_page.application(studio, queue)
  return studio_guard.Guard(page, token, most, studio_page.PATHS)


@contextlib.contextmanager
def _work_dir(path: str) -> Iterator[str]:
  if path:
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="musiclm_studio_") as made:
    yield made


def serve(args: argparse.Namespace) -> None:
  """Serves until it is interrupted.

  Raises:
    UserError: for bad options or bundles, or where something is missing.
  """
  check_installed()
  token = serving.token_for(args.host, args.token, TOKEN_VARIABLE)
  allowed = limits(args)
  import uvicorn

  from musiclm_jax.systems import audiolm

  with contextlib.ExitStack() as stack:
    listener = stack.enter_context(serving.listen(args.host, args.port))
    folder = stack.enter_context(_work_dir(args.work_dir))
    system = audiolm.load(args.bundle).with_acoustic(args.acoustic)
    studio = studio_session.Studio(system, folder, allowed)
    queue = studio_queue.Queue(args.max_waiting)
    stack.callback(queue.close)
    app = application(studio, queue, token)
    # No access log: addresses may show the token.
    server = uvicorn.Server(
      uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
      )
    )
    address = serving.address(listener, args.host, token)
    print(f"musiclm studio: {address}", flush=True)
    server.run([listener])
