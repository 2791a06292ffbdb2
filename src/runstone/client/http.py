"""Requests to one server: repeated when an answer is lost, and their problems raised as errors."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial

import httpx2
import msgspec
import stamina

from runstone import errors
from runstone.errors import BadConfig, RunstoneError, Unavailable

URL_DEFAULT = "http://127.0.0.1:8700"

CONNECT_S = 5.0  # a server that is there accepts in milliseconds; a phone's network in two seconds
READ_S = 30.0  # for an answer: the server itself gives up on a commit long before
SILENCE_S = 45.0  # three of the server's 15 s heartbeats: a stream that says nothing for longer is cut
CONNECTIONS_MAX = 500  # each stream holds one; half of the 1,024 descriptors that a process usually has
REPEATS_MAX = 10  # with the pauses below about 25 s: longer than a server's restart
REPEATS_S_MAX = 45.0
PAUSE_FIRST_S, PAUSE_MAX_S, PAUSE_JITTER_S = 0.1, 5.0, 0.5
RETRY_AFTER_S_MAX = 60.0  # a header cannot put a client to sleep for a day

PASSING = (502, 503, 504)  # a server, or a proxy before it, that is starting, stopping or overwhelmed

Params = Mapping[str, str | int | float]


class Passing(Exception):
    """A failure that passes by itself, no answer or one of `PASSING`; `error` is for when it does not."""

    def __init__(self, error: RunstoneError, retry_after_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


class Http:
    """A pool of connections to one server."""

    def __init__(self, url: str, token: str | None, transport: httpx2.AsyncBaseTransport | None) -> None:
        self.url = url.rstrip("/")
        try:
            address = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            address = httpx2.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise BadConfig(f"{url!r} is no URL of a server.", remedy=f"Write it like {URL_DEFAULT}.")
        headers = {"accept": "application/json, application/problem+json"}
        if token:
            if not (token.isascii() and token.isprintable()):
                raise BadConfig("The token holds characters that no header carries.", remedy="Set it again.")
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            headers=headers,
            transport=transport,
            timeout=httpx2.Timeout(READ_S, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
            trust_env=not _is_loopback(address.host),  # a proxy's 127.0.0.1 is another machine
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: bytes | None = None,
        wait_s: float = 0.0,
    ) -> bytes:
        """The answer's body. Every request that is sent from here is safe to repeat, and is.

        `wait_s` is how long the server may hold the answer back. Raises the errors of `runstone.errors`; a server that
        says when to come back is asked again then, and one that names a time beyond REPEATS_S_MAX not at all.
        """
        until = asyncio.get_running_loop().time() + REPEATS_S_MAX
        try:
            async for attempt in stamina.retry_context(
                on=partial(_pause, until),
                attempts=REPEATS_MAX,
                timeout=REPEATS_S_MAX,
                wait_initial=PAUSE_FIRST_S,
                wait_max=PAUSE_MAX_S,
                wait_jitter=PAUSE_JITTER_S,
            ):
                with attempt:
                    response = await self.once(method, path, params=params, body=body, wait_s=wait_s)
                    if response.is_success:
                        return response.content
                    if method == "DELETE" and response.status_code == 404 and attempt.num > 1:
                        return b""  # an earlier try did it, and its answer was lost
                    raise self._failure(response)
        except Passing as passing:
            raise passing.error from passing.__cause__
        raise AssertionError("unreachable")

    async def once(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: bytes | None = None,
        wait_s: float = 0.0,
    ) -> httpx2.Response:
        """The answer, whatever its status, to a request that is sent once; `Passing` where there is none."""
        headers = {"content-type": "application/json"} if body is not None else None
        timeout = httpx2.Timeout(READ_S + wait_s, connect=CONNECT_S)
        with self._unanswered():
            return await self._client.request(
                method, path, params=params, content=body, headers=headers, timeout=timeout
            )

    @contextlib.asynccontextmanager
    async def stream(self, path: str, params: Params) -> AsyncIterator[httpx2.Response]:
        """An open event stream, or its 204; a cut inside the block is `Passing` too."""
        # A compressor on the way would hold back what is live.
        headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S, read=SILENCE_S)
        with self._unanswered():
            opened = self._client.stream("GET", path, params=params, headers=headers, timeout=timeout)
            async with opened as response:
                if not response.is_success:
                    await response.aread()
                    raise self._failure(response)
                if response.status_code != 204 and _media_type(response) != "text/event-stream":
                    raise stranger(self.url, f"{path} is not an event stream")
                yield response

    @contextlib.contextmanager
    def _unanswered(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            raise Passing(
                Unavailable(
                    f"There is no server at {self.url} ({_words(error)}).",
                    remedy="Start one with `runstone serve` or `make demo`, or set RUNSTONE_URL.",
                )
            ) from error
        except httpx2.TransportError as error:
            raise Passing(Unavailable(f"{self.url} did not answer ({_words(error)}).")) from error

    def _failure(self, response: httpx2.Response) -> Exception:
        error = problem(self.url, response)
        return Passing(error, _retry_after_s(response)) if response.status_code in PASSING else error


class _Problem(msgspec.Struct):
    """An RFC 9457 problem, as far as the client reads it."""

    code: str
    title: str = ""
    detail: str = ""
    remedy: str | None = None
    errors: list[dict[str, str]] = []
    first: int = 1


# By code: those with a status of their own. The others never travel as problems.
_CLASSES: dict[str, type[RunstoneError]] = {
    error.code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, RunstoneError) and error.status != 500
}


def problem(url: str, response: httpx2.Response) -> RunstoneError:
    """The error that a response stands for, by the code it names."""
    status = f"{response.status_code} {response.reason_phrase}"
    try:
        said = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        if response.status_code in PASSING:
            return Unavailable(f"{url} answered {status}.")
        return stranger(url, f"it answered {status}")
    detail = said.detail or said.title or status
    match _CLASSES.get(said.code):
        case None:
            return RunstoneError(f"{detail} ({status}, {said.code})", remedy=said.remedy)
        case errors.CursorGone:
            return errors.CursorGone(detail, first=said.first)
        case errors.Unavailable:
            return Unavailable(detail, remedy=said.remedy, retry_after_s=_retry_after_s(response) or None)
        case errors.Invalid:
            return errors.Invalid(detail, said.errors, remedy=said.remedy)
        case known:
            return known(detail, remedy=said.remedy)


def stranger(url: str, why: str) -> RunstoneError:
    """The error for an answer that no Runstone server gives."""
    return RunstoneError(f"{url} does not answer as a Runstone server: {why}.", remedy="Check RUNSTONE_URL.")


def _pause(until: float, error: Exception) -> bool | float:
    """What stamina asks: whether to repeat the request, and when the server said it."""
    if not isinstance(error, Passing):
        return False
    left_s = until - asyncio.get_running_loop().time()
    return (error.retry_after_s or True) if error.retry_after_s <= left_s else False


def _retry_after_s(response: httpx2.Response) -> float:
    """0 where the header is absent, or a date: our servers send seconds."""
    value = response.headers.get("retry-after", "")
    return min(float(value), RETRY_AFTER_S_MAX) if value.isascii() and value.isdigit() else 0.0


def _media_type(response: httpx2.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
