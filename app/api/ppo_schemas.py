"""The request body of POST /ppo-reward; the response body is in `ppo_response_schemas`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from app.api.arrays import Logprobs, Mask
from app.api.schemas import LOCK, TEA, Body, Input, Truncation, example, wrong
from app.rewards.combination import LLAMA2_MODELS
from app.rewards.kl import Estimator
from app.rewards.selection import ThresholdOn


class PPOItem(Input):
    """One response: an input or its known scores, and the logprobs of policy and reference for the KL penalty."""

    safety_score: float | None = Field(
        None, description="Send it with helpfulness_score instead of an input; no model runs."
    )
    helpfulness_score: float | None = None
    scores: dict[str, float] | None = Field(
        None, min_length=1, description="Known scores of any models, by model name, instead of an input."
    )
    is_safety: bool = Field(
        False, description="Whether the prompt is a safety prompt: combine mode llama2 takes the safety score."
    )
    group_id: str | int | None = Field(None, description="Whitening group; required in mode group.")
    ended: bool | None = Field(
        None, description="Whether the response ended with EOS; required with missing_eos_penalty."
    )
    policy_logprobs: Logprobs | None = None
    reference_logprobs: Logprobs | None = None
    mask: Mask | None = None
    process_rewards: list[float] | None = Field(
        None, description="The reward of each step, in order; added to the rewards of the tokens at step_ends."
    )
    step_ends: list[int] | None = Field(
        None, description="The last token of each step, counted from 0 in the response's tokens, ascending."
    )

    @property
    def known_scores(self) -> dict[str, float]:
        """The scores that the item brings, by model."""
        own = {"safety": self.safety_score, "helpfulness": self.helpfulness_score}
        return {name: score for name, score in own.items() if score is not None} | (self.scores or {})

    @property
    def has_scores(self) -> bool:
        return self.safety_score is not None or self.helpfulness_score is not None or self.scores is not None

    @model_validator(mode="after")
    def one_form(self) -> Self:
        forms = self.given_forms()
        if self.has_scores:
            if forms:
                raise wrong(f"has both scores and {forms[0]}; scores come in place of an input")
            for name in LLAMA2_MODELS:
                if getattr(self, f"{name}_score") is not None and name in (self.scores or {}):
                    raise wrong(f"has both {name}_score and scores.{name}; send one of them")
        elif len(forms) != 1:
            raise wrong(
                f"has {' and '.join(forms) or 'no input'}; send exactly one of prompt and response, messages, text, "
                "rendered, input_ids, safety_score and helpfulness_score, scores"
            )
        self.check_form()
        if (self.policy_logprobs is None) != (self.reference_logprobs is None):
            there, missing = "policy_logprobs", "reference_logprobs"
            if self.policy_logprobs is None:
                there, missing = missing, there
            raise wrong(f"has {there} but no {missing}; send both, or neither for no penalty")
        if self.mask is not None and self.policy_logprobs is None:
            raise wrong("has a mask but no logprobs; send policy_logprobs and reference_logprobs, or drop the mask")
        return self


COMBINE_FIELDS = {
    "llama2": {"threshold_on"},
    "weighted": {"weights", "whiten_each"},
    "lagrangian": {"lambda"},
    "worst": {"models"},
}


class Combine(Body):
    """How several models' scores become one. Each rule with its equation: docs/ppo-reward.md."""

    mode: Literal["llama2", "weighted", "lagrangian", "worst"] = Field(
        "llama2",
        description="`llama2` selects the safety or the helpfulness score; `weighted` is the sum of w_m R_m over any models; "
        "`lagrangian` is (R_h + lambda R_s) / (1 + lambda); `worst` is the lowest of any models' whitened scores.",
    )
    threshold_on: ThresholdOn | None = Field(
        None, description="For llama2: whether safety_threshold is a `probability` (default) or a raw `score`."
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None, min_length=1, description="For weighted: each model's weight, by model name."
    )
    models: list[str] | None = Field(
        None, min_length=1, description="For worst: the models' names; by default safety and helpfulness."
    )
    whiten_each: bool | None = Field(
        None, description="For weighted: whiten each model's scores, then sum (GDPO). False by default."
    )
    multiplier: float | None = Field(None, ge=0, alias="lambda", description="For lagrangian.")

    @property
    def score_models(self) -> tuple[str, ...]:
        """The models whose scores are combined, those of Llama 2 first."""
        given = {"weighted": self.weights, "worst": self.models}.get(self.mode) or LLAMA2_MODELS
        return (
            *(name for name in LLAMA2_MODELS if name in given),
            *(name for name in given if name not in LLAMA2_MODELS),
        )

    @property
    def whitens_each(self) -> bool:
        """Whether each model's scores are whitened before they are combined."""
        return self.mode == "worst" or bool(self.whiten_each)

    @model_validator(mode="after")
    def fields_fit_the_mode(self) -> Self:
        names = {"multiplier": "lambda"}
        given = {names.get(name, name) for name in self.model_fields_set - {"mode"} if getattr(self, name) is not None}
        for name in sorted(given - COMBINE_FIELDS[self.mode]):
            raise wrong(f"has {name}, which mode {self.mode} does not take; drop it, or choose another mode")
        if self.mode == "weighted" and self.weights is None:
            raise wrong('has no weights; mode weighted needs {"safety": ..., "helpfulness": ...}')
        if self.weights is not None and self.weights.keys() < set(LLAMA2_MODELS):
            (other,) = set(LLAMA2_MODELS) - self.weights.keys()
            raise wrong(
                f"has one of two weights: combine.weights.{other} is missing; send it, 0 to leave that score out"
            )
        if self.mode == "lagrangian" and self.multiplier is None:
            raise wrong("has no lambda; mode lagrangian needs it, a number from 0")
        if self.models is not None and len(set(self.models)) < len(self.models):
            raise wrong("has a model more than once in models; name each once")
        return self


class WhitenStatsBody(Body):
    """Statistics of the shaped scores. They suffice to whiten, and to merge with those of other requests (Chan et al.)."""

    count: int = Field(ge=0, le=1 << 53)
    mean: float
    m2: float = Field(ge=0, description="Sum of squared deviations from the mean.")


StatsByGroup = dict[str, WhitenStatsBody]


StatsByModel = dict[str, StatsByGroup]


def stats_form(stats: Any) -> str:
    """The form that the body has, so that errors refer to it. A map by model in mode batch is parsed as one by group."""
    if not isinstance(stats, dict) or not all(isinstance(each, dict) for each in stats.values()):
        return "One"
    inner = [value for each in stats.values() for value in each.values()]
    return "ByModel" if inner and all(isinstance(value, dict) for value in inner) else "ByGroup"


AnyStats = Annotated[
    Annotated[WhitenStatsBody, Tag("One")]
    | Annotated[StatsByGroup, Tag("ByGroup")]
    | Annotated[StatsByModel, Tag("ByModel")],
    Discriminator(stats_form),
]


class Whiten(Body):
    mode: Literal["batch", "group", "none"] = "batch"
    shift_mean: bool = Field(True, description="Whether the mean stays out of the result; false adds it again.")
    singletons: Literal["error", "zero"] = Field(
        "error",
        description="A group (or batch) of one score has no variance: `error` is a 422, `zero` whitens it to 0.",
    )
    stats: AnyStats | None = Field(
        None,
        description="Used instead of the request's own statistics, in the form of whiten_stats.",
    )

    @model_validator(mode="after")
    def options_fit_the_mode(self) -> Self:
        if self.mode == "none" and self.stats is not None:
            raise wrong("has stats, but mode none does not whiten; drop them, or choose mode batch or group")
        if self.mode == "none" and self.singletons == "zero":
            raise wrong("has singletons, but mode none does not whiten; drop it, or choose mode batch or group")
        return self


class KL(Body):
    estimator: Estimator = Field(
        "k1",
        description="With x = log pi - log pi_0: k1 = x, k2 = mse = x^2 / 2, k3 = exp(-x) - 1 + x, abs = |x|, "
        "low_var_kl = min(k3, 10), pointwise = -pi_0 x.",
    )
    clip: float | None = Field(None, gt=0, description="Clamps x to [-clip, clip] first.")


class Process(Body):
    """Process rewards. The equation: docs/ppo-reward.md."""

    model: str | None = Field(
        None, description="The process reward model whose step scores are used for items without process_rewards."
    )
    weight: float = Field(1.0, description="The factor of every process reward.")
    on: Literal["score", "probability"] = Field(
        "score", description="Whether that model's step scores or their sigmoids are the rewards."
    )

    @model_validator(mode="after")
    def on_needs_a_model(self) -> Self:
        if self.model is None and self.on == "probability":
            raise wrong("has on probability but no model; process_rewards that items bring are used as they are")
        return self


class PPORequest(Body):
    model_config = example(
        {
            "items": [
                LOCK | {"is_safety": True, "policy_logprobs": [-0.2, -1.1], "reference_logprobs": [-0.4, -1.0]},
                TEA | {"policy_logprobs": [-0.5, -0.3], "reference_logprobs": [-0.6, -0.9]},
            ]
        }
    )

    items: list[PPOItem] = Field(min_length=1)
    beta: float | None = Field(None, ge=0, description="Weight of the KL penalty; by default the service's, 0.01.")
    combine: Combine = Combine()
    safety_threshold: float | None = Field(
        None,
        description="For combine mode llama2: a probability in (0, 1), by default the service's, 0.15; "
        "with threshold_on score any number, and required.",
    )
    whiten: Whiten = Whiten()
    kl: KL = KL()
    process: Process | None = Field(
        None,
        description="Where process rewards come from, and their weight; by default the items' own, with weight 1.",
    )
    token_rewards: bool = Field(False, description="Also the reward of every token; they sum to the reward.")
    score_clip: tuple[float, float] | None = Field(None, description="Clips the scores to [low, high].")
    missing_eos_penalty: float | None = Field(None, ge=0, description="Subtracted from the score if ended is false.")
    truncation: Truncation = "error"

    @model_validator(mode="after")
    def clip_is_a_range(self) -> Self:
        if self.score_clip is not None and self.score_clip[0] > self.score_clip[1]:
            raise wrong(f"score_clip {list(self.score_clip)} is empty; send [low, high]")
        return self

    @model_validator(mode="after")
    def threshold_fits_the_mode(self) -> Self:
        mode, threshold = self.combine.mode, self.safety_threshold
        if mode != "llama2":
            if threshold is not None:
                raise wrong(f"has safety_threshold, which combine mode {mode} does not take; drop it")
        elif self.combine.threshold_on == "score":
            if threshold is None:
                raise wrong("has no safety_threshold; combine.threshold_on score needs one, in units of the raw score")
        elif threshold is not None and not 0 < threshold < 1:
            raise wrong(
                f"has safety_threshold {threshold:g}; send a probability above 0 and below 1, or combine.threshold_on score"
            )
        return self

    @model_validator(mode="after")
    def stats_fit_the_modes(self) -> Self:
        """One object, a map by group in mode group, or a map by model of either if each model's scores are whitened."""
        stats, by_group = self.whiten.stats, self.whiten.mode == "group"
        if stats is None:
            return self
        maps_of_groups = isinstance(stats, dict) and any(isinstance(each, dict) for each in stats.values())
        if self.combine.whitens_each:
            models = self.combine.score_models
            if not isinstance(stats, dict) or stats.keys() != set(models):
                raise wrong(
                    f"whiten.stats must be a map by model ({', '.join(models)}), because combine whitens each model's scores"
                )
            has_groups = maps_of_groups
        elif maps_of_groups:
            raise wrong(
                "whiten.stats can be a map by model only if combine whitens each model's scores; send one object"
            )
        else:
            has_groups = isinstance(stats, dict)
        if has_groups != by_group:
            raise wrong("whiten.stats must be a map by group in mode group, and one object in mode batch")
        return self
