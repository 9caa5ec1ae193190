# SPDX-License-Identifier: Apache-2.0
"""Who may ask the studio, and that its pages load nothing from elsewhere."""

import asyncio
import re

import pytest

from musiclm_jax.cli import studio_guard

TOKEN = "a-token"
PAGE = (
  b'<html><script src="/assets/a.js"></script>'
  b'<script src="https://cdn.example/x.js" async></script>'
  b'<link rel="preconnect" href="https://fonts.example" />'
  b'<link rel="stylesheet" href="./theme.css"></html>'
)


async def app(scope, receive, send):
  """Reads the whole body, answers with a page."""
  if scope["path"] == "/broken":
    raise RuntimeError("a secret")
  size = 0
  while True:
    message = await receive()
    size += len(message.get("body", b""))
    if not message.get("more_body"):
      break
  headers = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-length", str(len(PAGE)).encode()),
    (b"Content-Security-Policy", b"none of it"),
  ]
  await send({"type": "http.response.start", "status": 200, "headers": headers})
  middle = len(PAGE) // 2
  await send(
    {"type": "http.response.body", "body": PAGE[:middle], "more_body": True}
  )
  await send({"type": "http.response.body", "body": PAGE[middle:]})


def ask(token="", path="/", query="", headers=None, parts=(b"",), **options):
  """Status, headers and body of one request."""
  guard = studio_guard.Guard(app, token, max_body_bytes=100, **options)
  headers = {"host": "localhost:7860"} | (headers or {})
  scope = {
    "type": "http",
    "path": path,
    "query_string": query.encode(),
    "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
  }
  messages = [
    {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
    for index, part in enumerate(parts)
  ]
  sent = []

  async def receive():
    return messages.pop(0)

  async def send(message):
    sent.append(message)

  asyncio.run(guard(scope, receive, send))
  answer = {name.lower(): value for name, value in sent[0]["headers"]}
  return sent[0]["status"], answer, b"".join(m["body"] for m in sent[1:])


def test_pages_load_nothing_from_elsewhere():
  status, headers, page = ask()
  assert status == 200
  assert b"https://" not in page
  assert b"/assets/a.js" in page and b"./theme.css" in page
  assert headers[b"content-length"] == str(len(page)).encode()
  assert headers[b"content-security-policy"].startswith(b"default-src 'self'")


@pytest.mark.parametrize(
  "host, status",
  [
    ("127.0.0.1:7860", 200),
    ("localhost", 200),
    ("[::1]:7860", 200),
    ("evil.example", 403),
    ("127.0.0.1.evil.example", 403),
    ("127.0.0.1@evil.example", 403),
    ("[", 403),
    ("", 403),
  ],
)
def test_without_a_token_only_this_machine_is_served(host, status):
  assert ask(headers={"host": host})[0] == status


@pytest.mark.parametrize(
  "request_, status",
  [
    ({}, 403),
    ({"query": "token=wrong"}, 403),
    ({"query": "token="}, 403),
    ({"query": f"token={TOKEN}"}, 200),
    ({"headers": {"authorization": f"Bearer {TOKEN}"}}, 200),
    ({"headers": {"cookie": f"a=b; musiclm_studio={TOKEN}"}}, 200),
    ({"headers": {"cookie": "musiclm_studio=\xff\xfe"}}, 403),
    ({"headers": {"cookie": "[=;;=("}}, 403),
  ],
)
def test_with_a_token_it_has_to_be_shown(request_, status):
  found, headers, body = ask(TOKEN, **request_)
  assert found == status
  assert TOKEN.encode() not in body
  # From any name, and kept by the browser so that addresses need not show it.
  assert (b"set-cookie" in headers) == ("query" in request_ and status == 200)


def test_bodies_are_limited_whatever_they_announce():
  assert ask(headers={"content-length": "101"})[0] == 413
  assert ask(headers={"content-length": "-5"})[0] == 413
  assert ask(parts=(b"x" * 60, b"x" * 60))[0] == 413
  assert ask(parts=(b"x" * 60, b"x" * 40))[0] == 200


def test_only_known_paths_are_passed_on():
  paths = re.compile(r"/|/file=/[^:]*")
  assert ask(path="/file=/a b.wav", paths=paths)[0] == 200
  for path in ("/file=http://e.example/a", "/proxy=http://e.example", "/x"):
    assert ask(path=path, paths=paths)[0] == 404


def test_what_the_application_fails_at_is_told_without_details(capsys):
  status, _, body = ask(path="/broken")
  assert status == 500 and b"secret" not in body
  assert "a secret" in capsys.readouterr().err


def test_tokens_differ():
  tokens = {studio_guard.new_token() for _ in range(10)}
  assert len(tokens) == 10 and min(map(len, tokens)) >= 20
