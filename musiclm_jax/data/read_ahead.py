# SPDX-License-Identifier: Apache-2.0
"""Makes the items of an iterator in threads, some ahead of their use."""

import atexit
import collections
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
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


def map_ahead(
  function: Callable[[Any], T],
  jobs: Iterable[Any],
  num_threads: int,
  num_items: int,
) -> Iterator[T]:
  """Yields `function(job)` of all jobs in order, computed by threads.

  Args:
    function: called by any of the threads.
    jobs: taken by the caller's thread.
    num_threads: that work at once.
    num_items: most results and jobs at work ahead of the caller.
  """
  ahead: collections.deque[futures.Future] = collections.deque()
  with futures.ThreadPoolExecutor(num_threads, "map_ahead") as pool:
    try:
      for job in jobs:
        ahead.append(pool.submit(function, job))
        if len(ahead) >= max(1, num_items):
          yield ahead.popleft().result()
      while ahead:
        yield ahead.popleft().result()
    finally:
      for future in ahead:
        future.cancel()
