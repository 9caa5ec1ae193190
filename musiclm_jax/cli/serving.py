# SPDX-License-Identifier: Apache-2.0
"""What the servers of the command line share: addresses, sockets, tokens."""

import ipaddress
import os
import re
import socket

from musiclm_jax.cli import studio_guard
from musiclm_jax.core import errors


def is_local(host: str) -> bool:
  """Whether an address is reached from this machine alone."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def token_for(host: str, given: str, variable: str) -> str:
  """The token that visitors need; '' for none.

  Args:
    host: that is served.
    given: by the command line.
    variable: of the environment, which is read where nothing is given.

  Raises:
    UserError: if the given one does not fit into an address, or is short.
  """
  given = given or os.environ.get(variable, "")
  if given and not re.fullmatch(r"[\w-]{8,200}", given, re.ASCII):
    raise errors.UserError(
      "--token: expected at least 8 letters, digits, - and _"
    )
  if given or is_local(host):
    return given
  return studio_guard.new_token()


def listen(host: str, port: int) -> socket.socket:
  """A bound socket.

  Raises:
    UserError: if the address cannot be had.
  """
  try:
    found = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(found[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(found[4])
  except (OSError, OverflowError) as error:
    reason = getattr(error, "strerror", None) or error
    raise errors.UserError(
      f"cannot serve {host}:{port} ({reason}): expected a free --port of an "
      "address of this machine"
    ) from error
  return listener


def address(listener: socket.socket, host: str, token: str) -> str:
  """What to open in a browser."""
  name = f"[{host}]" if ":" in host else host
  query = f"/?token={token}" if token else "/"
  return f"http://{name}:{listener.getsockname()[1]}{query}"
