"""The trainer's side of reward-service: a sync and an async client, and adapters for trainers (`reward_client.adapters`).

Depends only on httpx. It accepts tensors and arrays without importing torch or numpy.
"""

from reward_client.async_client import AsyncRewardClient
from reward_client.client import RewardClient
from reward_client.encoding import Limits
from reward_client.errors import (
    APIError,
    BadReplyError,
    ClientClosedError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineError,
    InvalidItemError,
    InvalidRequestError,
    RewardClientError,
    ServerFailedError,
    UnauthorizedError,
    UnavailableError,
)
from reward_client.exchange import Retry
from reward_client.results import (
    CompareSummary,
    Comparison,
    ModelScore,
    PairResult,
    PPOResult,
    PPORewards,
    ScoreResult,
    Scores,
    Usage,
    WhitenStats,
)
from reward_client.stats import merge_stats

__all__ = [
    "APIError",
    "AsyncRewardClient",
    "BadReplyError",
    "ClientClosedError",
    "CompareSummary",
    "Comparison",
    "ConfigurationError",
    "ConnectionFailedError",
    "DeadlineError",
    "InvalidItemError",
    "InvalidRequestError",
    "Limits",
    "ModelScore",
    "PPOResult",
    "PPORewards",
    "PairResult",
    "Retry",
    "RewardClient",
    "RewardClientError",
    "ScoreResult",
    "Scores",
    "ServerFailedError",
    "UnauthorizedError",
    "UnavailableError",
    "Usage",
    "WhitenStats",
    "merge_stats",
]
