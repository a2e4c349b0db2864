"""`Settings`: from flags of `reward-service serve`, `REWARD_*` environment variables, a `.env` file, in this order.

A field's docstring is the flag's help text and its row in docs/settings.md.
"""

import difflib
import os
import re
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from dotenv.parser import parse_stream
from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.checkpoints.model_settings import LLAMA2, ROLES, ModelSettings, in_words, read_models
from app.errors import StartError

HUB_PREFIX = "hf:"
PAGE_PATH = "/ui"
"""Of the playground, which `ui` switches on."""
PREFIX = "reward_"
OUR_NAME = re.compile(rf"\b{PREFIX}\w+", re.IGNORECASE)
SERVICE_LINK = re.compile(r"_service_(host|port)(_|$)|_port(_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)?$")
"""What Kubernetes puts into a pod's environment for each Service, here for one whose name begins with `reward-`."""
OTHER_PREFIXES = ("reward_client_", "reward_ray_")
"""Variables of the Python client, and of the Ray application, which has settings of its own."""
Truncation = Literal["error", "prompt", "left", "right"]


def check_names(variables: Iterable[str], settings_cls: type[BaseSettings], location: str) -> None:
    """Raises StartError for a variable with our prefix that is no setting: a misspelt name must not pass in silence."""
    known = {f"{PREFIX}{name}" for name in settings_cls.model_fields}
    for name in map(str.lower, variables):
        if not name.startswith(PREFIX) or name in known or name.startswith(OTHER_PREFIXES) or SERVICE_LINK.search(name):
            continue
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {nearest[0].upper()}?" if nearest else "see `reward-service serve --help`"
        raise StartError(f"{name.upper()} in {location} is no setting; {hint}")


def check_lines(path: Path) -> None:
    """Raises StartError for a line with one of our names that gives it no value, which the parser would skip."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for binding in parse_stream(lines):
            found = OUR_NAME.search(binding.original.string) if binding.error or binding.key else None
            if found and (binding.error or binding.value is None):
                raise StartError(
                    f"{path.name}, line {binding.original.line}: {found[0].upper()} is not set there; write {found[0].upper()}=value, "
                    "with quotes at both ends or none"
                )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="REWARD_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # API keys are among it
    )

    safety_model: str | None = None
    """Safety reward model: a directory, or `hf:` and a hub id. Unset: models/safety. Empty: not loaded."""
    helpfulness_model: str | None = None
    """Helpfulness reward model: a directory, or `hf:` and a hub id. Unset: models/helpfulness. Empty: not loaded."""
    models: Annotated[dict[str, ModelSettings] | None, NoDecode] = None
    """Further reward models by name, as JSON: {"maths": "models/maths", "style": {"source": "hf:org/model", "device": "cuda:1",
    "head": ..., "text": ...}}. The names safety and helpfulness may stand here in place of their own settings. Where this is
    set, a role that neither names is not loaded."""
    safety_head: str | None = Field(default=None, min_length=1)
    """What the safety checkpoint does not say about its head, position, map and texts: a preset's name, a JSON file, or JSON.
    Unset: what is found, and what reward.json beside the checkpoint declares (docs/models.md)."""
    helpfulness_head: str | None = Field(default=None, min_length=1)
    """The same for the helpfulness checkpoint."""
    safety_device: str = Field(default="auto", min_length=1)
    """Device of the safety model: auto, cpu, mps, cuda, cuda:1, ... or split. auto uses a GPU if there is one. split
    spreads the model over all GPUs and puts the rest in CPU memory (extra `large`)."""
    helpfulness_device: str = Field(default="auto", min_length=1)
    """Device of the helpfulness model, as above."""
    safety_text: str | None = Field(default=None, min_length=1)
    """Text rules of the safety model: a chat template (a file, or the name of one that ships), or the JSON of reward.json's
    `text`: {"template": ..., "template_kwargs": {}, "system": "", "add_bos": true, "add_eos": true, "append": [271]}."""
    helpfulness_text: str | None = Field(default=None, min_length=1)
    """The same for the helpfulness model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Type of the trunk's weights. auto: bfloat16 on CUDA, else float32. int8: quantizes linear layers only, one scale per
    row; everything else as in auto (extra `large`). The head is always float32."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. Set API keys before you listen beyond loopback. :: also serves IPv4."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 picks a free port."""
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens per forward pass, with shared prefixes counted once. Higher improves GPU use, lower reduces latency.
    Unset: 4096 on CPU; on a GPU 32768, or less where that takes over half of the memory that the weights leave."""
    max_queue_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens in a device's queue; further requests wait for room. Unset: 64 times MAX_BATCH_TOKENS."""
    max_length: int | None = Field(default=None, ge=1)
    """Maximum tokens per sequence. Unset: the checkpoint's own limit."""
    prefix_cache_mb: float | None = Field(default=None, ge=0)
    """Megabytes (10^6 bytes) of each device's memory for the keys and values of prefixes that were computed before; its
    models share them equally. 0: no cache. Unset: a tenth of the free memory, at most 1000 on CPU; on CUDA nine
    tenths of what the weights and the largest batch leave."""
    max_items: int = Field(default=1024, ge=1)
    """Maximum items per request."""
    max_waiting_requests: int = Field(default=8192, ge=1)
    """Maximum requests that wait for room in the queue; further ones get 503 with Retry-After."""
    max_body_mb: float = Field(default=64, gt=0)
    """Maximum size of a request's body in megabytes (10^6 bytes); a larger one gets 413."""
    deadline_seconds: float = Field(default=110, gt=0)
    """Seconds until an unanswered request gets 504. slime's client gives up after 120."""
    grace_seconds: float = Field(default=30, ge=0)
    """Seconds that accepted requests have left after SIGTERM."""
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(default=(), repr=False)
    """Comma-separated API keys. Clients send one as a bearer token or as the HTTP Basic password. Unset: no key needed."""
    allowed_hosts: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Comma-separated host names with a dot that the Host header may hold while there are no API keys; * allows all. Unset:
    none on loopback, which stops DNS rebinding by web pages; all elsewhere."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """Format of the log on standard error: json or text. auto: text on a terminal, else json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum log level. Requests are logged at info, probes at debug, 5xx at warning."""
    safety_threshold: float = Field(default=0.15, gt=0, lt=1)
    """The safety score becomes the reward where its probability is below this. A request may override it."""
    beta: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Weight of the KL penalty. A request may override it."""
    compat_model: str | None = Field(default=None, min_length=1)
    """Model for compatibility routes whose request names none: llama2 (the selected score), or a model's name. Unset: llama2
    if safety and helpfulness are loaded, else the first of safety, helpfulness and those in MODELS."""
    compat_truncation: Truncation | None = None
    """Truncation of over-long inputs on the compatibility routes: error, prompt (left if the start of the response is
    unknown), left or right. Unset: left, so that a long rollout never fails."""
    compat_close: Literal["template", "as_sent"] = "template"
    """How rendered text ends on the compatibility routes. template: the last turn gets the end of turn that the checkpoint's
    chat template gives it, neither doubled nor lost. as_sent: it ends where the text does."""
    compat_activation: bool = False
    """Apply a sigmoid by default on vLLM's routes, as vLLM does. Off: raw scores."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads per forward pass on CPU, whatever other processes do. Unset: at most the physical cores, the process's
    affinity and its cgroup's CPU quota, and fewer while other processes use the processors."""
    ui: bool = False
    """Serve the playground at /ui (extra `ui`)."""
    trust_remote_code: bool = False
    """Run Python code that a checkpoint contains. Only for checkpoints whose code you have read."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual sources; raises StartError for a `REWARD_` variable that is no setting, or that a line of `.env` does not set."""
        if isinstance(dotenv_settings, DotEnvSettingsSource) and isinstance(dotenv_settings.env_file, str | Path):
            check_lines(Path(dotenv_settings.env_file))
        for source, location in ((env_settings, "the environment"), (dotenv_settings, ".env")):
            if isinstance(source, EnvSettingsSource):
                check_names(source.env_vars, settings_cls, location)
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    @field_validator("api_keys", mode="before")
    @classmethod
    def split_keys(cls, value: object) -> object:
        """An empty value is refused: a variable that was meant to hold a key must not open the service."""
        keys = tuple(key.strip() for key in value.split(",")) if isinstance(value, str) else value
        if isinstance(keys, tuple) and not all(keys):
            raise ValueError("an API key is empty; give comma-separated keys, or unset it to ask for none")
        if value == "":
            raise ValueError("API keys are set but empty; give comma-separated keys, or unset it to ask for none")
        return keys

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def split_hosts(cls, value: object) -> object:
        hosts = tuple(host.strip().lower() for host in value.split(",")) if isinstance(value, str) else value
        if isinstance(hosts, tuple) and not all(hosts):
            raise ValueError("a host name is empty; give comma-separated names, or unset it")
        return hosts

    @field_validator("num_threads")
    @classmethod
    def threads_have_processors(cls, value: int | None) -> int | None:
        """More threads than processors would wait for each other most of the time; a thousand cannot even start."""
        num_processors = os.cpu_count()
        if value is not None and num_processors is not None and value > num_processors:
            raise ValueError(f"this machine has {num_processors} processors; give at most as many, or unset it")
        return value

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False

    @field_validator("models", mode="before")
    @classmethod
    def parse_models(cls, value: object) -> object:
        return None if value is None else read_models(value)

    @model_validator(mode="after")
    def some_model(self) -> Self:
        if not self.model_names:
            raise ValueError("both safety_model and helpfulness_model are empty; a service needs at least one model")
        return self

    @model_validator(mode="after")
    def models_are_named_once(self) -> Self:
        for role in ROLES:
            own = [
                name
                for part in ("model", "head", "device", "text")
                if (name := f"{role}_{part}") in self.model_fields_set and getattr(self, name) is not None
            ]
            if role in (self.models or {}) and own:
                raise ValueError(
                    f"REWARD_MODELS has {role}, and REWARD_{own[0].upper()} is set too; describe the {role} model in one of them"
                )
        return self

    @model_validator(mode="after")
    def compat_model_is_loaded(self) -> Self:
        needed = ROLES if self.compat_model == LLAMA2 else (self.compat_model,)
        for name in needed:
            if name is not None and name not in self.model_names:
                raise ValueError(
                    f"compat_model {in_words(self.compat_model)} needs the {in_words(name)} model, which is not loaded; name one of "
                    f"{', '.join(self.model_names)}"
                )
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models to load, the two roles first."""
        further = self.models or {}
        roles = [role for role in ROLES if role in further or self._loads(role)]
        return (*roles, *(name for name in further if name not in ROLES))

    def _loads(self, role: str) -> bool:
        """Whether the role's own setting asks for it: unset, it does where there is no other list of models."""
        given = getattr(self, f"{role}_model")
        return self.models is None if given is None else given != ""

    def model_settings(self, name: str) -> ModelSettings:
        """How a model that is to be loaded is loaded, its source as `model_source` finds it. Raises StartError."""
        source = self.model_source(name)
        if source is None:
            raise StartError(f"there is no {name} model; {how_to_load(name)}")
        if self.models is not None and name in self.models:
            return self.models[name].model_copy(update={"source": source})
        own = {part: getattr(self, f"{name}_{part}") for part in ("device", "head", "text")}
        return ModelSettings(source=source, **own)

    def only(self, name: str) -> Self:
        """These settings for a service of that one model."""
        roles = dict.fromkeys([f"{role}_{part}" for role in ROLES for part in ("model", "head", "text")])
        alone = {"models": {name: self.model_settings(name)}, "compat_model": None}
        return self.model_copy(update=roles | alone)

    def model_source(self, name: str) -> str | None:
        """Where the checkpoint of `name` is: a directory, or a hub id with `hf:`; None where it is not to be loaded.

        Raises StartError where a directory does not exist, naming the places that were tried.
        """
        if name not in self.model_names:
            return None
        listed = self.models[name].source if self.models is not None and name in self.models else None
        given = listed if listed is not None else getattr(self, f"{name}_model")
        if given is not None and given.startswith(HUB_PREFIX):
            return str(given)
        beside_app = Path(__file__).resolve().parent.parent
        places = [Path(given)] if given is not None else [Path("models", name), beside_app / "models" / name]
        places = list(dict.fromkeys(place.absolute() for place in places))
        for place in places:
            if place.is_dir():
                return os.fspath(place)
        tried = " and ".join(map(os.fspath, places))
        if listed is not None:
            raise StartError(
                f"no {name} model at {tried}; give REWARD_MODELS a checkpoint's directory for it, or {HUB_PREFIX} and a hub id"
            )
        raise StartError(
            f"no {name} model at {tried}; set REWARD_{name.upper()}_MODEL to a checkpoint's directory, "
            f"to {HUB_PREFIX} and a hub id, or to an empty value to serve without it"
        )


def how_to_load(name: str) -> str:
    """What to set so that the model is loaded."""
    return f"set REWARD_{name.upper()}_MODEL" if name in ROLES else "add it to REWARD_MODELS"
