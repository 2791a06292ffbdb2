"""The agent `chat`: a conversation with any OpenAI-compatible endpoint, through the official SDK.

Which one, the environment says: `OPENAI_BASE_URL` (without it OpenAI's own), `OPENAI_API_KEY` (many local
servers need none) and `OPENAI_MODEL` (without it the first that the endpoint lists and that looks like a chat
model). The SDK is imported when the agent first runs.
"""

import contextlib
import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from runstone.errors import AgentError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

    from runstone import Runstone

OPENAI_URL: Final = "https://api.openai.com/v1"
NO_KEY: Final = "none"  # the SDK wants one; servers that need none ignore it

TURNS_MAX: Final = 100  # of the conversation so far, the newest …
TURNS_CHARS_MAX: Final = 200_000  # … and no more than this: about 50,000 tokens, which common models take
CONNECT_S: Final = 10.0
SILENCE_S: Final = 300.0  # between two pieces of an answer: some models think long before they speak
RETRIES_MAX: Final = 2  # before an answer begins, where the endpoint is busy; the SDK waits up to 8 s each
ERROR_CHARS_MAX: Final = 500  # of what an endpoint says about its own error

# Endpoints list all their models; those with such a word in the name do not converse.
NOT_CHAT: Final = (
    *("audio", "babbage", "dall-e", "davinci", "embed", "guard", "image", "moderation", "ocr", "realtime"),
    *("rerank", "sora", "transcribe", "tts", "whisper"),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    base_url: str
    api_key: str = field(repr=False)
    model: str | None = None

    @property
    def host(self) -> str:
        """Host and port: what may be shown of a URL that might hold a password."""
        return urlsplit(self.base_url).netloc.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class Used:
    """The tokens of one model call, as the endpoint counts them."""

    model: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int | None
    reasoning_tokens: int | None


@dataclass(frozen=True, slots=True)
class Finished:
    reason: str


Piece = Said | Thought | Used | Finished


# --- before the call --------------------------------------------------------------------------------


def endpoint_of(environment: Mapping[str, str]) -> Endpoint:
    """The endpoint that the environment names; `AgentError` with the variable to set where it does not."""
    base_url = environment.get("OPENAI_BASE_URL", "").strip()
    api_key = environment.get("OPENAI_API_KEY", "").strip()
    if not base_url and not api_key:
        raise AgentError(
            "No model to talk to. Set OPENAI_BASE_URL to an OpenAI-compatible endpoint and OPENAI_API_KEY to"
            " its key (OPENAI_API_KEY alone means OpenAI), then start the server again."
        )
    try:
        url = urlsplit(base_url or OPENAI_URL)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if not good or not base_url.isprintable():
        raise AgentError("OPENAI_BASE_URL is no URL. Give one such as http://127.0.0.1:11434/v1.")
    if not (api_key.isascii() and api_key.isprintable()):
        raise AgentError("OPENAI_API_KEY holds characters that no key has. Copy it again.")
    model = environment.get("OPENAI_MODEL", "").strip() or None
    return Endpoint(base_url or OPENAI_URL, api_key or NO_KEY, model)


def conversation(history: Iterable[object], message: str) -> list[Turn]:
    """What the model is told: the newest of what people and the agent said before, and `message`."""
    said = [
        Turn("user" if role == "user" else "assistant", content)
        for each in history
        if (role := getattr(each, "role", None)) in ("user", "assistant")
        and isinstance(content := getattr(each, "content", None), str)
        and content
    ]
    room = TURNS_CHARS_MAX - len(message)
    turns: list[Turn] = []
    for turn in reversed(said[-TURNS_MAX:]):
        room -= len(turn.content)
        if room < 0:
            break
        turns.append(turn)
    # Some endpoints refuse a conversation that the assistant opens.
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return [*reversed(turns), Turn("user", message)]


# --- the call ---------------------------------------------------------------------------------------


async def answer(endpoint: Endpoint, turns: list[Turn]) -> AsyncGenerator[Piece, None]:
    """The model's answer, piece by piece. Closing this, or a cancel, closes the HTTP stream.

    Whatever goes wrong with the endpoint is an `AgentError` that says what to do and never holds the key.
    """
    try:
        import openai
    except ImportError:
        raise AgentError("The agent needs the OpenAI SDK. Run: pip install 'runstone[openai]'") from None
    finished: Finished | None = None
    used: Used | None = None
    try:
        async with (
            openai.AsyncOpenAI(
                base_url=endpoint.base_url,
                api_key=endpoint.api_key,
                timeout=openai.Timeout(SILENCE_S, connect=CONNECT_S),
                max_retries=RETRIES_MAX,
            ) as client,
            await _stream(client, endpoint.model or await _first_model(client, endpoint), turns) as stream,
        ):
            async for chunk in stream:
                for piece in pieces_of(chunk):
                    if isinstance(piece, Said | Thought):
                        yield piece
                    elif isinstance(piece, Used):
                        used = piece  # some endpoints count along; the last one stands
                    else:
                        finished = piece
    except openai.OpenAIError as error:
        raise explained(error, endpoint) from None  # the chain would hold the request, and that the key
    except ValueError:  # of the SDK's decoder
        raise AgentError(f"{endpoint.host} sent something that is no chat completion.") from None
    if used:
        yield used
    if not finished:
        raise AgentError(f"{endpoint.host} ended its answer in the middle. Try again.", retryable=True)
    yield finished


async def _first_model(client: "AsyncOpenAI", endpoint: Endpoint) -> str:
    page = await client.models.list()
    names = [name for model in page.data or [] if isinstance(name := getattr(model, "id", None), str) and name]
    for name in names:
        if not any(word in name.lower() for word in NOT_CHAT):
            return name
    raise AgentError(f"{endpoint.host} lists no chat model. Set OPENAI_MODEL to the name of one.")


async def _stream(client: "AsyncOpenAI", model: str, turns: list[Turn]) -> "AsyncStream[ChatCompletionChunk]":
    from openai import APIStatusError

    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": turn.content}
        if turn.role == "user"
        else {"role": "assistant", "content": turn.content}
        for turn in turns
    ]
    try:
        return await client.chat.completions.create(
            model=model, messages=messages, stream=True, stream_options={"include_usage": True}
        )
    except APIStatusError as error:
        # Older servers do not know the option. An answer without its count is better than none.
        if error.status_code not in (400, 422) or "stream_options" not in error.message:
            raise
    return await client.chat.completions.create(model=model, messages=messages, stream=True)


def pieces_of(chunk: object) -> Iterable[Piece]:
    """What one chunk of a stream holds; of what is not as the protocol says, nothing.

    The SDK builds its objects from whatever the endpoint sent, unchecked: no attribute is sure to be there.
    """
    choices = getattr(chunk, "choices", None)
    for choice in choices[:1] if isinstance(choices, list) else []:
        delta = getattr(choice, "delta", None)
        # No standard has reasoning; both names are in use, and some endpoints send both.
        if thought := _text(delta, "reasoning_content") or _text(delta, "reasoning"):
            yield Thought(thought)
        if said := _text(delta, "content") or _text(delta, "refusal"):
            yield Said(said)
        if reason := _text(choice, "finish_reason"):
            yield Finished(reason)
    usage = getattr(chunk, "usage", None)
    input_tokens, output_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if input_tokens is not None and output_tokens is not None:
        yield Used(
            model=_text(chunk, "model") or "unknown",
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_input_tokens=_count(getattr(usage, "prompt_tokens_details", None), "cached_tokens"),
            reasoning_tokens=_count(getattr(usage, "completion_tokens_details", None), "reasoning_tokens"),
        )


def _text(holder: object, name: str) -> str:
    value = getattr(holder, name, None)
    return value if isinstance(value, str) else ""


def _count(holder: object, name: str) -> int | None:
    value = getattr(holder, name, None)
    return value if type(value) is int and 0 <= value < 2**63 else None


def explained(error: Exception, endpoint: Endpoint) -> AgentError:
    """An SDK error as one for people: what happened, what to do, and nothing that is secret."""
    import openai

    said = str(getattr(error, "message", "") or type(error).__name__)
    if endpoint.api_key != NO_KEY:
        said = said.replace(endpoint.api_key, "…")
    said = " ".join(said.split())[:ERROR_CHARS_MAX]
    host = endpoint.host
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return AgentError(f"{host} refused the key: {said}. Check OPENAI_API_KEY.")
        case openai.NotFoundError():
            return AgentError(f"{host} did not find it: {said}. Check OPENAI_BASE_URL and OPENAI_MODEL.")
        case openai.RateLimitError():
            return AgentError(f"{host} takes no more for now: {said}. Try again later.", retryable=True)
        case openai.APIStatusError(status_code=code) if code >= 500:
            return AgentError(f"{host} failed: {said}. Try again later.", retryable=True)
        case openai.APIStatusError():
            return AgentError(f"{host} refused the request: {said}.")
        case openai.APITimeoutError():
            return AgentError(f"{host} was silent for too long. Try again later.", retryable=True)
        case openai.APIConnectionError():
            return AgentError(
                f"The connection to {host} failed. Check OPENAI_BASE_URL, and that the endpoint is up.",
                retryable=True,
            )
    return AgentError(f"{host} reported an error: {said}.")


# --- the agent --------------------------------------------------------------------------------------


def register(app: "Runstone") -> None:
    """Add the agent `chat` to an app."""
    from runstone import Run

    @app.agent
    async def chat(run: Run, message: str) -> str:
        """Talk to the model that OPENAI_BASE_URL and OPENAI_API_KEY name; it knows the thread so far."""
        endpoint = endpoint_of(os.environ)
        turns = conversation((await run.history(limit=TURNS_MAX)).messages, message)
        async with run.message() as reply, contextlib.aclosing(answer(endpoint, turns)) as pieces:
            async for piece in pieces:
                match piece:
                    case Said(text):
                        await reply.write(text)
                    case Thought(text):
                        await run.think(text)
                    case Used():
                        await run.usage(
                            provider=endpoint.host,
                            model=piece.model,
                            input_tokens=piece.input_tokens,
                            output_tokens=piece.output_tokens,
                            cached_input_tokens=piece.cached_input_tokens,
                            reasoning_tokens=piece.reasoning_tokens,
                        )
                    case Finished(reason) if reason != "stop":
                        await run.emit("finish_reason", reason)  # "length": there would have been more
        return reply.text
