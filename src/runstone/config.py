"""Settings: a flag wins over RUNSTONE_*, which wins over Runstone(…), which wins over the default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from runstone.errors import BadConfig


class Config(BaseSettings):
    """All settings of a server; frozen. The description of each gives its unit and its reason."""

    model_config = SettingsConfigDict(env_prefix="RUNSTONE_", frozen=True, extra="forbid")

    store: str = Field(
        default="sqlite:///.runstone/runstone.db",
        description="where runs are kept; three slashes: relative, four: absolute; "
        "?journal_mode=delete for disks that cannot share memory between processes",
    )
    broker: Literal["local"] = Field(
        default="local", description="what carries hints between processes; one process needs none"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; without auth only a loopback address")
    port: int = Field(default=8700, ge=0, le=65535, description="port to listen on; 0: any free one")
    origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="exact origins, comma-separated, that may send commands beside the server's own",
    )
    hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="host names, comma-separated, that requests may ask for beside loopback ones"
    )
    slots: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="runs under way at once, without those that wait for people; more wait in the queue",
    )
    lease_s: float = Field(
        default=15.0,
        ge=1,
        le=3600,
        description="seconds without a sign of life after which other workers take a worker's runs over",
    )
    grace_s: float = Field(
        default=10.0,
        ge=0,
        le=15,
        description="seconds that a server which is to stop gives its runs to end, before it leaves them to the next",
    )
    heartbeat_s: float = Field(
        default=15.0, gt=0, le=300, description="seconds of silence on a stream before a sign of life"
    )
    send_deadline_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="seconds that a client may read nothing before it is cut off; its cursor stays good",
    )
    sockets_a_user: int = Field(default=10_000, ge=1, le=1_000_000, description="open streams of one user")
    breaker_failures: int = Field(
        default=5, ge=1, le=1000, description="failures in a row of a tool or provider that open its breaker"
    )
    breaker_recovery_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds that an open breaker refuses before it lets one try through"
    )
    debug: bool = Field(default=False, description="show the messages of all exceptions to clients, and log more")

    @field_validator("origins", "hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, (item.strip() for item in value.split(",")))) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings)


def load(flags: dict[str, Any], app: dict[str, Any]) -> Config:
    """The settings from all four places; raises BadConfig with the name of the wrong one."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        from_env = Config()
        env = {name: getattr(from_env, name) for name in from_env.model_fields_set}
        return Config(**(app | env | given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise BadConfig(f"{name} (RUNSTONE_{name.upper()}): {first['msg']}, not {first.get('input')!r}.") from None
