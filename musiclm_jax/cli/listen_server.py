# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of a listening test: what may be asked, and how much.

Whatever is asked, the answer is a page, a clip, JSON, or one line that says
what was expected; never a traceback.
"""

import argparse
import contextlib
import http.server
import json
import pathlib
import re
import socket
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from musiclm_jax.cli import listen_site, listen_store, serving, studio_guard
from musiclm_jax.evaluation import listening_files

TOKEN_VARIABLE = "MUSICLM_LISTEN_TOKEN"
COOKIE = "musiclm_listen"
MAX_BODY_BYTES = 4096
_MAX_CONNECTIONS = 128
_IDLE_SECS = 30.0
_JSON = "application/json"
_HEADERS = {
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; media-src "
    "'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action "
    "'none'; frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class _Problem(Exception):
  """Ends a request with a status and a line for the visitor."""

  def __init__(self, status: HTTPStatus, text: str):
    super().__init__(text)
    self.status, self.text = status, text


def _part(text: str, size: int) -> tuple[int, int] | None:
  """First byte and end of a Range header; None for all of it."""
  match = _RANGE.fullmatch(text.strip())
  if not match or match[0] == "bytes=-":
    return None  # Other units and several parts may be ignored.
  first, last = match[1], match[2]
  if not first:
    begin, end = max(size - int(last), 0), size
  else:
    begin, end = int(first), min(int(last) + 1 if last else size, size)
    if last and int(last) < begin:
      return None
  if begin >= size or begin >= end:
    raise _Problem(
      HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {size} bytes"
    )
  return begin, end


class _Handler(http.server.BaseHTTPRequestHandler):
  """One connection."""

  protocol_version = "HTTP/1.1"
  timeout = _IDLE_SECS
  server: "Server"
  _sets_cookie = False

  def version_string(self) -> str:
    """Nothing of this machine."""
    return "musiclm"

  def log_message(self, format: str, *args: Any) -> None:
    """No log of requests: addresses may show the token."""

  def send_error(
    self, code: int, message: str | None = None, explain: str | None = None
  ) -> None:
    """Of what the base class finds wrong with a request."""
    status = HTTPStatus(code)
    if status == HTTPStatus.NOT_IMPLEMENTED:
      status = HTTPStatus.METHOD_NOT_ALLOWED
    self.close_connection = True
    self._send(status, json.dumps({"error": status.phrase}).encode(), _JSON)

  def do_GET(self) -> None:  # noqa: N802, the base class calls it so
    """Pages, clips, what the page asks."""
    self._guarded(self._get)

  def do_HEAD(self) -> None:  # noqa: N802
    """As GET, without the body."""
    self._guarded(self._get)

  def do_POST(self) -> None:  # noqa: N802
    """Raters who join, and answers."""
    self._guarded(self._post)

  def _guarded(self, respond: Callable[[str], None]) -> None:
    self._sets_cookie = False
    try:
      path, given = self._target()
      headers = {name.lower(): text for name, text in self.headers.items()}
      token = self.server.site.token
      if not studio_guard.is_welcome(headers, given, token, COOKIE):
        raise _Problem(HTTPStatus.FORBIDDEN, _reason(token))
      # The token itself, not what was given: that may be anything where a
      # cookie was shown as well.
      self._sets_cookie = bool(token) and given == token
      self._refuse_body()
      respond(path)
    except _Problem as problem:
      self._refuse(problem.status, problem.text)
    except (ConnectionError, TimeoutError):
      self.close_connection = True
    except Exception as problem:
      traceback.print_exception(problem, file=sys.stderr)
      self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")

  def _target(self) -> tuple[str, str]:
    """Path and token of the request's address."""
    try:
      parts = urllib.parse.urlsplit(self.path)
      query = urllib.parse.parse_qs(parts.query, max_num_fields=20)
    except ValueError as error:
      raise _Problem(HTTPStatus.BAD_REQUEST, "odd address") from error
    return parts.path, query.get("token", [""])[-1]

  def _refuse_body(self) -> None:
    """A body that nobody reads would be taken for the next request."""
    has_length = self.headers.get("Content-Length", "0").strip() != "0"
    if self.command != "POST" and (
      has_length or "Transfer-Encoding" in self.headers
    ):
      raise _Problem(HTTPStatus.BAD_REQUEST, "expected no body")

  def _refuse(self, status: HTTPStatus, text: str) -> None:
    # What is left of a body would be taken for the next request.
    self.close_connection = True
    with contextlib.suppress(OSError):
      self._send(status, json.dumps({"error": text}).encode(), _JSON)

  def _get(self, path: str) -> None:
    site = self.server.site
    if path == "/api/test":
      self._send_json(site.about())
      return
    found = site.files.get(path)
    if found is None:
      raise _Problem(HTTPStatus.NOT_FOUND, "there is no such page")
    content = found.path.read_bytes()
    cache = "private, max-age=86400" if found.is_fixed else "no-cache"
    headers = {"Accept-Ranges": "bytes", "Cache-Control": cache}
    part = _part(self.headers.get("Range", ""), len(content))
    status = HTTPStatus.OK
    if part is not None:
      begin, end = part
      headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
      content, status = content[begin:end], HTTPStatus.PARTIAL_CONTENT
    self._send(status, content, found.kind, headers)

  def _post(self, path: str) -> None:
    site = self.server.site
    act = {"/api/join": site.join, "/api/answer": site.answer}.get(path)
    if act is None:
      raise _Problem(HTTPStatus.NOT_FOUND, "there is no such page")
    content = self._body()
    try:
      self._send_json(act(listen_site.parse(content)))
    except listen_store.Refused as problem:
      raise _Problem(HTTPStatus.CONFLICT, str(problem)) from problem
    except ValueError as problem:
      raise _Problem(HTTPStatus.BAD_REQUEST, str(problem)) from problem
    except (ConnectionError, TimeoutError):
      raise
    except OSError as problem:
      print(f"musiclm listen: cannot save: {problem}", file=sys.stderr)
      raise _Problem(
        HTTPStatus.INSUFFICIENT_STORAGE, "it could not be saved; try again"
      ) from problem

  def _body(self) -> bytes:
    # Pages of other sites cannot send this type without being asked first.
    kind = self.headers.get_content_type()
    if kind != _JSON:
      raise _Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected Content-Type {_JSON}"
      )
    length = self.headers.get("Content-Length", "")
    if "Transfer-Encoding" in self.headers or not length:
      raise _Problem(HTTPStatus.LENGTH_REQUIRED, "expected Content-Length")
    if not re.fullmatch("[0-9]{1,18}", length):
      raise _Problem(HTTPStatus.BAD_REQUEST, "expected a whole Content-Length")
    if int(length) > MAX_BODY_BYTES:
      raise _Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"expected at most {MAX_BODY_BYTES} bytes",
      )
    body = self.rfile.read(int(length))
    if len(body) < int(length):
      raise _Problem(HTTPStatus.BAD_REQUEST, "the body is cut off")
    return body

  def _send_json(self, content: dict[str, Any]) -> None:
    self._send(
      HTTPStatus.OK,
      json.dumps(content).encode(),
      _JSON,
      {"Cache-Control": "no-store"},
    )

  def _send(
    self,
    status: HTTPStatus,
    content: bytes,
    kind: str,
    headers: dict[str, str] | None = None,
  ) -> None:
    self.send_response(status)
    for name, text in {**_HEADERS, **(headers or {})}.items():
      self.send_header(name, text)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(content)))
    if self._sets_cookie:
      cookie = f"{COOKIE}={self.server.site.token}"
      self.send_header(
        "Set-Cookie", f"{cookie}; Path=/; HttpOnly; SameSite=Strict"
      )
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)


def _reason(token: str) -> str:
  if token:
    return "open the address that you were sent, with its token"
  return "this page is served to this machine alone"


class Server(http.server.ThreadingHTTPServer):
  """A site on a bound socket, with a limited number of connections."""

  daemon_threads = True

  def __init__(self, listener: socket.socket, site: listen_site.Site):
    """Begins to listen.

    Args:
      listener: of `serving.listen`; closed with the server.
      site: what is served.
    """
    super().__init__(
      listener.getsockname()[:2], _Handler, bind_and_activate=False
    )
    self.socket.close()
    self.socket, self.site = listener, site
    self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
    self.server_activate()

  def process_request(self, request: Any, client_address: Any) -> None:
    """Gives a connection a thread, or ends it where there are too many."""
    if not self._places.acquire(blocking=False):
      self.shutdown_request(request)
      return
    super().process_request(request, client_address)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    """Serves a connection."""
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._places.release()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """What ends a connection is no news unless it is a bug."""
    problem = sys.exception()
    if not isinstance(problem, (ConnectionError, TimeoutError)):
      traceback.print_exception(problem, file=sys.stderr)


@contextlib.contextmanager
def opened(
  test_dir: pathlib.Path, host: str, port: int, token: str
) -> Iterator[tuple[Server, str]]:
  """A server of a test, and its address.

  Raises:
    UserError: if the test is damaged, its log is of another one or in use, or
      the address cannot be had.
  """
  test = listening_files.read_test(test_dir)
  listening_files.check_clips(test_dir, test)
  with contextlib.ExitStack() as stack:
    store = listen_store.AnswerStore(
      test_dir / listening_files.ANSWERS_NAME, test
    )
    stack.callback(store.close)
    listener = stack.enter_context(serving.listen(host, port))
    server = Server(listener, listen_site.Site(test_dir, test, store, token))
    yield server, serving.address(listener, host, token)


def serve(args: argparse.Namespace) -> None:
  """Serves until it is interrupted.

  Raises:
    UserError: as `opened`, or for a bad token.
  """
  token = serving.token_for(args.host, args.token, TOKEN_VARIABLE)
  folder = pathlib.Path(args.test_dir)
  with opened(folder, args.host, args.port, token) as (server, address):
    print(f"musiclm listen: {address}", flush=True)
    server.serve_forever()
