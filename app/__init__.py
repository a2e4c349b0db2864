"""reward-service: Llama 2 style rewards over HTTP for RL trainers."""

from importlib.metadata import version

__version__ = version("reward-service")
