# SPDX-License-Identifier: Apache-2.0
"""What stands before the studio's page: who may ask, how much, and of whom.

An ASGI application flows in, one flows out that lets through requests with the
token (or, on this machine alone, for a name of this machine), of limited size,
and whose pages make a browser ask nobody but this server.
"""

import hmac
import http.cookies
import re
import secrets
import sys
import traceback
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = Mapping[str, Any]
App = Callable[..., Awaitable[None]]

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
COOKIE = "musiclm_studio"
# Everything that a page loads comes from the server it came from. Components
# of Gradio are styled and scripted inline.
_POLICY = (
  "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' "
  "'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
  "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = (
  (b"content-security-policy", _POLICY.encode()),
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
)
# Elements of a page that load, or announce, something from elsewhere.
_REMOTE = re.compile(
  rb"<script\b[^>]*\bsrc=[\"']https?://[^>]*>\s*</script>"
  rb"|<link\b[^>]*\bhref=[\"']https?://[^>]*>",
  re.IGNORECASE,
)


def new_token() -> str:
  """A token that cannot be guessed."""
  return secrets.token_urlsafe(16)


def host_name(header: str) -> str:
  """The name in a Host header, without port and brackets."""
  try:
    return urllib.parse.urlsplit(f"//{header}").hostname or ""
  except ValueError:
    return ""


def local_pages(page: bytes) -> bytes:
  """HTML without elements that load from elsewhere."""
  return _REMOTE.sub(b"", page)


def is_welcome(
  headers: Mapping[str, str], given: str, token: str, cookie: str = COOKIE
) -> bool:
  """Whether a request may be answered.

  Args:
    headers: by name in small letters.
    given: token in the address, or ''.
    token: that must be shown; '' where only names of this machine are served.
    cookie: name of the cookie that may show it.
  """
  if not token:
    return host_name(headers.get("host", "")) in LOCAL_NAMES
  cookies = http.cookies.SimpleCookie()
  try:
    cookies.load(headers.get("cookie", ""))
  except http.cookies.CookieError:
    cookies.clear()
  shown = [given, headers.get("authorization", "").removeprefix("Bearer ")]
  if cookie in cookies:
    shown.append(cookies[cookie].value)
  return any(hmac.compare_digest(s.encode(), token.encode()) for s in shown)


class _TooLarge(Exception):
  """A body goes beyond the limit."""


class Guard:
  """See the module."""

  def __init__(
    self,
    app: App,
    token: str,
    max_body_bytes: int,
    paths: re.Pattern[str] = re.compile(".*"),
  ):
    """Wraps an application.

    Args:
      app: what answers the requests that are let through.
      token: that they must show; '' where only names of this machine are
        served, which keeps pages of other sites from asking.
      max_body_bytes: of a request.
      paths: whole paths that there are; by default those of `app`.
    """
    self._app, self._token, self._max_bytes = app, token, max_body_bytes
    self._paths = paths

  async def __call__(self, scope: Scope, receive: App, send: App) -> None:
    """Answers one request."""
    if scope["type"] != "http":
      if scope["type"] == "lifespan":
        await self._app(scope, receive, send)
      return  # No web sockets: nothing here needs them.
    headers = {
      name.decode("latin-1").lower(): value.decode("latin-1")
      for name, value in scope["headers"]
    }
    query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"))
    given = query.get("token", [""])[-1]
    if not is_welcome(headers, given, self._token):
      await _answer(send, 403, _reason(self._token))
      return
    path = urllib.parse.unquote(scope["path"])
    if not self._paths.fullmatch(path):
      await _answer(send, 404, "there is no such page")
      return
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > self._max_bytes:
      await _answer(send, 413, self._limit)
      return
    cookie = self._cookie(given) if self._token and given else b""
    await self._pass_on(scope, receive, _Sender(send, cookie))

  @property
  def _limit(self) -> str:
    return f"expected at most {self._max_bytes / (1 << 20):g} MB"

  def _cookie(self, token: str) -> bytes:
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict".encode()

  async def _pass_on(
    self, scope: Scope, receive: App, sender: "_Sender"
  ) -> None:
    count = 0

    async def counted() -> dict[str, Any]:
      nonlocal count
      message = await receive()
      count += len(message.get("body", b""))
      if count > self._max_bytes:
        raise _TooLarge
      return message

    try:
      await self._app(scope, counted, sender)
    except _TooLarge:
      if not sender.has_begun:
        await _answer(sender.send, 413, self._limit)
    except Exception as problem:
      # A bug of the application, or a request that it did not expect.
      traceback.print_exception(problem, file=sys.stderr)
      if not sender.has_begun:
        await _answer(sender.send, 500, "internal error: see the server's log")


def _reason(token: str) -> str:
  if token:
    return "open the address that was printed where the studio was started"
  return "this page is served to this machine alone"


async def _answer(send: App, status: int, text: str) -> None:
  """A whole answer of one line."""
  headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
  await send(
    {"type": "http.response.start", "status": status, "headers": headers}
  )
  await send({"type": "http.response.body", "body": text.encode() + b"\n"})


class _Sender:
  """Sends on an answer, with our headers; pages as `local_pages`.

  Attributes:
    send: of the server.
    has_begun: whether anything was sent.
  """

  def __init__(self, send: App, cookie: bytes):
    self.send, self.has_begun = send, False
    self._cookie = cookie
    # The begin of a page that is held back until its length is known.
    self._start: dict[str, Any] | None = None
    self._page = b""

  async def __call__(self, message: dict[str, Any]) -> None:
    """Takes one message."""
    if message["type"] == "http.response.start":
      await self._begin(message)
    elif self._start is not None:
      self._page += message.get("body", b"")
      if not message.get("more_body"):
        await self._send_page(message)
    else:
      await self.send(message)

  async def _begin(self, message: dict[str, Any]) -> None:
    added = {name for name, _ in _HEADERS}
    headers = [
      (name, value)
      for name, value in message.get("headers", ())
      if name.lower() not in added
    ] + list(_HEADERS)
    if self._cookie:
      headers.append((b"set-cookie", self._cookie))
    message = {**message, "headers": headers}
    kinds = {name.lower(): value for name, value in headers}
    is_page = kinds.get(b"content-type", b"").startswith(b"text/html")
    if is_page and b"content-encoding" not in kinds:
      self._start = message
      return
    self.has_begun = True
    await self.send(message)

  async def _send_page(self, message: dict[str, Any]) -> None:
    page = local_pages(self._page)
    headers = [
      (name, value)
      for name, value in self._start["headers"]
      if name.lower() != b"content-length"
    ]
    headers.append((b"content-length", str(len(page)).encode()))
    self.has_begun = True
    await self.send({**self._start, "headers": headers})
    self._start = None
    await self.send({**message, "body": page})
