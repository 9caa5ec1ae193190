# SPDX-License-Identifier: Apache-2.0
"""A studio with a small bundle, running in a thread of this process."""

import contextlib
import pathlib
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def running(
  bundle: pathlib.Path, folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path]]:
  """A studio on any port.

  Args:
    bundle: folder of the bundle.
    folder: its files lie deep in it.

  Yields:
    Its address and its work directory.
  """
  import uvicorn

  from musiclm_jax.cli import (
    serving,
    studio_queue,
    studio_server,
    studio_session,
    studio_wishes,
  )
  from musiclm_jax.systems import musiclm

  limits = studio_wishes.Limits(max_secs=5, max_candidates=3)
  work = folder / "a" / "b" / "work"
  studio = studio_session.Studio(musiclm.MusicLM.load(bundle), work, limits)
  queue = studio_queue.Queue()
  app = studio_server.application(studio, queue, "")
  listener = serving.listen("127.0.0.1", 0)
  config = uvicorn.Config(app, log_level="warning", ws="none")
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
  thread.start()
  while not server.started:
    time.sleep(0.05)
  try:
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", work
  finally:
    server.should_exit = True
    thread.join(20)
    queue.close()
