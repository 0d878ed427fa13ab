"""What an operator sets: limits, keys, addresses. They are held against each other when they are built."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from leafembed.errors import Error

__all__ = ["LOOPBACK", "Limits", "Settings", "is_loopback", "read_keys"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that a machine calls itself."""

_PRIVATE = (".local", ".internal", ".home.arpa", ".test")
"""Ends of names that are not given to sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may ask for, and all of them together; over a limit a request is refused."""

    body_bytes: int = 8_000_000
    """Most bytes of a request's body, counted while it arrives."""
    bodies_bytes: int = 64_000_000
    """Most bytes of the bodies of all requests at once; who brings more is told to come back."""
    head_bytes: int = 32_768
    """Most bytes of a request's line and headers, with those after its body."""
    items: int = 2_048
    """Most texts of a request; OpenAI's limit."""
    chars_per_token: int = 250
    """A text may have this many characters for each token that the model reads; more are refused before tokenising."""
    request_chars: int = 4_000_000
    """Most characters of a request."""
    request_tokens: int = 300_000
    """Most tokens of a request; OpenAI's limit."""
    queue_tokens: int = 600_000
    """Most tokens that wait or are computed at once; a request that does not fit is told to come back."""
    requests: int = 1_024
    """Most requests at once."""
    connections: int = 4_096
    """Most open connections; further ones are closed."""
    batch_tokens: int = 192
    """Padded tokens of one forward pass; a longer text is alone in its pass. Fewer keep waits short."""
    receive_s: float = 30.0
    """Seconds in which a request must have arrived."""
    answer_s: float = 120.0
    """Seconds from a request's arrival to its vectors."""
    send_s: float = 30.0
    """Seconds in which a client must take each piece of the answer."""
    drain_s: float = 30.0
    """Seconds that running requests have after SIGTERM."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise Error(f"limit {field.name}: got {getattr(self, field.name)}, expected more than 0")
        if self.body_bytes > self.bodies_bytes:
            raise Error(
                f"limits: got {self.body_bytes} bytes a body and {self.bodies_bytes} of all bodies, expected all to be "
                "at least one"
            )
        if self.request_tokens > self.queue_tokens:
            raise Error(
                f"limits: got {self.request_tokens} tokens a request and {self.queue_tokens} in the queue, expected a "
                "queue that can hold the largest request"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the server meets the world.

    Attributes:
        limits: See :class:`Limits`.
        keys: API keys of which a request must show one; empty: none is asked for, and hosts and origins are checked.
        hosts: Host names that requests may name besides those that :meth:`admits` knows; ``*``: any.
        loopback: Whether only this machine can reach the server.
        watch_s: Seconds between two looks at whether a bundle was replaced; 0: never.
    """

    limits: Limits = Limits()
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    loopback: bool = True
    watch_s: float = 2.0

    def knows(self, key: str) -> bool:
        """Whether a key is one of ours; every key is compared in full, so that time tells nothing."""
        given = key.encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(given, known.encode()) for known in self.keys]
        return any(matches)

    def admits(self, host: str) -> bool:
        """Whether a request may name this host, without port.

        A page of another site reaches us under its own name, once it has that name resolved to our address. So where
        other machines reach the server, it answers to addresses and to names that no site can have, and to no others.
        """
        name = host.lower().rstrip(".")
        if name in LOOPBACK or name.endswith(".localhost") or "*" in self.hosts or name in self.hosts:
            return True
        return not self.loopback and ("." not in name or name.endswith(_PRIVATE) or _is_address(name))


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    return host in LOOPBACK or host.startswith("127.")


def read_keys(file: Path | None, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return API keys: those given, and those in a file, one a line; blank lines and those after # are no keys.

    Raises:
        Error: If the file holds no key, or a key is not plain ASCII without spaces.
    """
    keys = [key.strip() for key in given if key.strip()]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise Error(f"--api-key-file {file}: got bytes that are no UTF-8, expected one key a line") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise Error(f"--api-key-file {file}: got no key, expected one a line")
        keys += found
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise Error("API key: got one with a space or a character outside ASCII, which no header can carry")
    return tuple(keys)
