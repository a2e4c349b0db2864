"""POST /admin/reload: loads the configured checkpoints again, without downtime. For the operator, who has an API key."""

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.errors import CLIENT_CLOSED_REQUEST, NATIVE_ERRORS
from app.api.inputs import TheService
from app.api.schemas import ErrorBody, example
from app.errors import ForbiddenError, InvalidInputError
from app.http.disconnect import ClientGoneError, DisconnectWatches

router = APIRouter(responses=NATIVE_ERRORS.responses(), tags=["operation"])


class ModelVersions(BaseModel):
    version: str = Field(description="The hub's commit, or the hash of the weights that serve from now on.")
    previous_version: str


class Reloaded(BaseModel):
    model_config = example(
        {"models": {"safety": {"version": "sha256:2c26b46b68ffc68f", "previous_version": "sha256:fcde2b2edba56bf4"}}}
    )

    models: dict[str, ModelVersions]


@router.post(
    "/admin/reload",
    summary="Load the configured checkpoints anew and swap them in",
    description="Responds when the new models are in use; the old models answer requests that were accepted before. If a "
    "checkpoint is rejected (422), or does not fit into memory next to the old one, nothing changes. The request has no body. "
    "If the client disconnects, the reload continues, and the log has its result.",
    response_model=Reloaded,
    responses={403: {"model": ErrorBody}, 409: {"model": ErrorBody}},
)
async def reload(service: TheService, request: Request) -> Reloaded | Response:
    if not service.settings.api_keys:
        raise ForbiddenError("reloading needs an API key, and the service has none; set REWARD_API_KEYS and restart it")
    service.accept()
    if await request.body():
        raise InvalidInputError("the request has a body, but the settings name the checkpoints; send none")
    before = {name: model.checkpoint.version for name, model in service.ready_engine().models.items()}
    try:
        await DisconnectWatches().while_connected(request.receive, service.reload())
    except ClientGoneError:  # the reload continues without the client
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    after = {name: model.checkpoint.version for name, model in service.ready_engine().models.items()}
    return Reloaded(
        models={name: ModelVersions(version=version, previous_version=before[name]) for name, version in after.items()}
    )
