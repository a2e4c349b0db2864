"""The check, and its error, that a model is a process reward model."""

from app.errors import InvalidInputError
from app.service import Service


def require_steps(service: Service, model: str, option: str) -> None:
    """Raises InvalidInputError if the model is not loaded, or is no process reward model."""
    service.require_models([model], option)
    if not service.ready_engine().models[model].head.position.is_per_step:
        raise no_steps_error(option, model)


def no_steps_error(option: str, model: str) -> InvalidInputError:
    return InvalidInputError(
        f"{option} needs a process reward model, which reads a score at every step; the {model} model reads one score; "
        'drop the option, or declare the step token in the checkpoint\'s reward.json: {"position": {"at": "TOKEN"}}'
    )
