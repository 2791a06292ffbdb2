"""The gate: who is asking, decided before anything else.

Without auth only this machine may ask: a loopback peer, a loopback Host (a web page elsewhere cannot make a browser
send one), no forwarding headers (behind a proxy everyone looks local), and no foreign Origin on what changes things.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.types import Scope

from runstone.errors import Forbidden

LOCAL_USER = "local"
USER_KEY = "runstone.user_id"  # in the scope of callers in this process; no header can set it

_FORWARDING = frozenset(
    {
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-forwarded-port",
        b"x-original-forwarded-for",
        b"x-real-ip",
        b"cf-connecting-ip",
        b"true-client-ip",
    }
)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Deny by default: `user` returns who asks, or raises Forbidden."""

    def __init__(self, *, origins: Iterable[str], hosts: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._hosts = frozenset(host.lower() for host in hosts)

    def user(self, scope: Scope) -> str:
        inside = scope.get(USER_KEY)
        if isinstance(inside, str):
            return inside
        self._check_peer(scope)
        headers = dict(reversed(scope["headers"]))
        self._check_host(scope, headers.get(b"host", b""))
        forwarding = _FORWARDING.intersection(headers)
        if forwarding:
            name = min(forwarding).decode()
            raise Forbidden(f"The request came through a proxy (it has {name}), and no auth is configured.")
        changes = scope["type"] == "websocket" or scope["method"] not in _READS
        if changes and b"origin" in headers:
            self._check_origin(scope, headers[b"origin"].decode("latin-1"), headers.get(b"host", b"").decode("latin-1"))
        return LOCAL_USER

    def _check_peer(self, scope: Scope) -> None:
        peer = (scope.get("client") or ("", 0))[0]
        if not is_loopback(peer):
            raise Forbidden(f"The request comes from {peer or 'nowhere'}, and no auth is configured.")

    def _check_host(self, scope: Scope, header: bytes) -> None:
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise Forbidden("The request has more than one Host.")
        host = _without_port(header.decode("latin-1")).lower()
        if not (is_loopback(host) or host in self._hosts):
            raise Forbidden(
                f"The request asks for the host {host[:100]!r}, and no auth is configured.",
                remedy="Use 127.0.0.1 or localhost, or name the host in RUNSTONE_HOSTS.",
            )

    def _check_origin(self, scope: Scope, origin: str, host: str) -> None:
        secure = scope["scheme"] in {"https", "wss"}
        own = f"{'https' if secure else 'http'}://{host}"
        if origin != own and origin not in self._origins:
            raise Forbidden(
                f"A page of {origin[:200]!r} may not do this.",
                remedy="Name its origin in RUNSTONE_ORIGINS if it is yours.",
            )


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine; only names that nobody can give another meaning."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
