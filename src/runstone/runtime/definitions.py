"""Agents and tools as they are registered: their names, options and schemas, checked when the module is loaded."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, TypeAlias, cast, get_origin, is_typeddict

from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    create_model,
)

from runstone.errors import BadConfig, Invalid, UnknownAgent
from runstone.events import OnCrash
from runstone.limits import NAME_CHARS_MAX
from runstone.resources import AgentInfo
from runstone.runtime.results import Results
from runstone.values import Json

AgentFunction: TypeAlias = "Callable[..., Awaitable[Any] | AsyncIterator[str]]"

TIMEOUT_S = 3600.0  # of a run: running time, over all attempts
TIMEOUT_S_MAX = 366 * 86_400.0  # a year: every run has a deadline that a calendar can show
MAX_ATTEMPTS = 3
_NAME = re.compile(rf"[A-Za-z_][A-Za-z0-9_.\-]{{0,{NAME_CHARS_MAX - 1}}}")


@dataclasses.dataclass(frozen=True)
class AgentDefinition:
    """A registered agent."""

    name: str
    function: AgentFunction
    kind: Literal["coroutine", "generator"]
    description: str | None
    on_crash: OnCrash
    max_attempts: int
    timeout_s: float
    provider: str | None  # whose breaker stops its starts
    parameters: Parameters
    results: Results  # what those get who call it

    def info(self) -> AgentInfo:
        return AgentInfo(name=self.name, description=self.description, input_schema=self.parameters.schema())


class Parameters:
    """What an agent takes, from its annotations.

    An object is matched to parameters by name, any other value goes to the first; a sole parameter that is annotated
    as a model or dict takes an object whole.
    """

    def __init__(self, name: str, function: AgentFunction) -> None:
        try:
            signature = inspect.signature(function, eval_str=True)
        except NameError as error:
            raise BadConfig(
                f"agent {name}: {error} in its annotations", remedy="Import it at the module's top."
            ) from None
        taken = list(signature.parameters.values())
        if not taken:
            raise BadConfig(f"agent {name} takes no run", remedy=f"Write: async def {name}(run: Run, …).")
        for parameter in taken:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
                raise BadConfig(f"agent {name}: the parameter {parameter} has no name", remedy="Name the parameters.")
        self._names = [parameter.name for parameter in taken[1:]]
        annotations = [Any if p.annotation is p.empty else p.annotation for p in taken[1:]]
        fields: dict[str, Any] = {
            parameter.name: (annotation, ... if parameter.default is parameter.empty else parameter.default)
            for parameter, annotation in zip(taken[1:], annotations, strict=True)
        }
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
        try:
            self._model = create_model(name, __config__=config, **fields)
            self._whole = len(annotations) == 1 and _takes_object(annotations[0])
            self._adapter = TypeAdapter(annotations[0]) if self._whole else None
        except (PydanticUserError, NameError) as error:
            raise BadConfig(
                f"agent {name}: {error}", remedy="Annotate parameters with types that JSON can be read into."
            ) from None

    def schema(self) -> dict[str, Json]:
        schema = self._adapter.json_schema() if self._adapter is not None else self._model.model_json_schema()
        return cast("dict[str, Json]", schema)

    def arguments(self, value: Json) -> dict[str, Any]:
        """The keyword arguments for an input; raises Invalid with the paths of what is wrong."""
        if isinstance(value, dict) and not (self._whole and set(value) != set(self._names)):
            given: dict[str, Any] = value
        elif value is None and not self._required_first():
            given = {}
        elif not self._names:
            given = {}  # the agent reads run.prompt, or needs nothing
        else:
            given = {self._names[0]: value}
        try:
            model = self._model.model_validate(given)
        except ValidationError as error:
            raise self._invalid(error, wrapped=given is not value) from None
        return {name: getattr(model, name) for name in self._names}

    def _required_first(self) -> bool:
        return bool(self._names) and self._model.model_fields[self._names[0]].is_required()

    def _invalid(self, error: ValidationError, *, wrapped: bool) -> Invalid:
        errors = []
        for item in error.errors(include_url=False, include_input=False):
            path = [str(step) for step in item["loc"]]
            if wrapped and path and path[0] == self._names[0]:
                path = path[1:]  # the caller never named that parameter
            errors.append({"path": ".".join(["input", *path]), "detail": item["msg"]})
        first = errors[0]
        return Invalid(f"{first['path']}: {first['detail']}", errors, remedy="GET /v1/agents shows the input's schema.")


def _takes_object(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    if is_typeddict(origin) or dataclasses.is_dataclass(origin):
        return True
    return inspect.isclass(origin) and issubclass(origin, BaseModel | Mapping)


def check_name(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadConfig(
            f"{kind} {name!r}: a name is a letter, then letters, digits and _ . -, at most {NAME_CHARS_MAX} characters."
        )
    return name


def define_agent(
    function: AgentFunction,
    *,
    name: str | None,
    on_crash: OnCrash,
    max_attempts: int,
    timeout_s: float,
    provider: str | None = None,
) -> AgentDefinition:
    """Raises BadConfig on what cannot be an agent."""
    agent_name = check_name("agent", name or str(getattr(function, "__name__", "")))
    if inspect.isasyncgenfunction(function):
        kind: Literal["coroutine", "generator"] = "generator"
    elif inspect.iscoroutinefunction(function):
        kind = "coroutine"
    else:
        raise BadConfig(
            f"agent {agent_name} is not async",
            remedy="Write async def; call blocking code through a sync @app.tool.",
        )
    if not 0 < timeout_s <= TIMEOUT_S_MAX or max_attempts < 1:
        raise BadConfig(
            f"agent {agent_name}: timeout_s must be above 0 and at most {TIMEOUT_S_MAX:.0f}, max_attempts at least 1."
        )
    return AgentDefinition(
        name=agent_name,
        function=function,
        kind=kind,
        description=inspect.getdoc(function),
        on_crash=on_crash,
        max_attempts=max_attempts,
        timeout_s=timeout_s,
        provider=None if provider is None else check_name("provider", provider),
        parameters=Parameters(agent_name, function),
        results=_results(function) if kind == "coroutine" else Results(Any),
    )


def _results(function: AgentFunction) -> Results:
    try:
        return Results.of(function)
    except BadConfig:
        return Results(Any)  # who calls it gets plain JSON, as people do


class Agents:
    """The agents of an app, by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, AgentDefinition] = {}

    def add(self, agent: AgentDefinition) -> None:
        if agent.name in self._by_name:
            raise BadConfig(
                f"There are two agents named {agent.name}.",
                remedy="Give one another name: @app.agent(name=…).",
            )
        self._by_name[agent.name] = agent

    def get(self, name: str) -> AgentDefinition:
        """Raises UnknownAgent."""
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise UnknownAgent(f"There is no agent {name!r}; there are: {known}.") from None

    def names(self) -> frozenset[str]:
        return frozenset(self._by_name)

    def infos(self) -> list[AgentInfo]:
        return [self._by_name[name].info() for name in sorted(self._by_name)]
