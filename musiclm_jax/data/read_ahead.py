# SPDX-License-Identifier: Apache-2.0
"""Makes the items of an iterator in a thread, some ahead of their use."""

import atexit
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_POLL_SECS = 0.2
_END_SECS = 10.0


class _Worker(threading.Thread):
  """Fills a queue from an iterator until that ends or `stop` is set."""

  def __init__(self, source: Iterator[Any], num_items: int):
    # A daemon: a process that ends must not wait for batches nobody will use.
    super().__init__(daemon=True, name="read_ahead")
    self.items: queue.Queue[Any] = queue.Queue(maxsize=max(1, num_items))
    self.stop = threading.Event()
    self._source = source

  def _put(self, item: Any) -> bool:
    while not self.stop.is_set():
      try:
        self.items.put(item, timeout=_POLL_SECS)
        return True
      except queue.Full:
        continue
    return False

  def run(self) -> None:
    error = None
    try:
      for item in self._source:
        if not self._put((item, None)):
          return
      error = StopIteration()
    except BaseException as caught:  # handed to the one who reads
      error = caught
    self._put((None, error))


_WORKERS: "weakref.WeakSet[_Worker]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
  # Readers in C++ must not run while the interpreter is torn down.
  for worker in list(_WORKERS):
    worker.stop.set()
  for worker in list(_WORKERS):
    worker.join(_END_SECS)


def read_ahead(source: Iterator[T], num_items: int) -> Iterator[T]:
  """Yields the items of `source`, which runs in a thread of its own.

  The thread ends when the source does, or when this generator is closed. What
  the source raises is raised here, after the items before it.

  Args:
    source: used by the thread only.
    num_items: made ahead at most.
  """
  worker = _Worker(source, num_items)
  _WORKERS.add(worker)
  worker.start()
  try:
    while True:
      item, error = worker.items.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield item
  finally:
    worker.stop.set()
    worker.join()
