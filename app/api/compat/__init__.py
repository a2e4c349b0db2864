"""The routes of other reward servers, so that a trainer that points its URL here works unchanged; a file a dialect."""

from fastapi import APIRouter

from app.api.compat import openrlhf, sglang, slime, tei, vllm

router = APIRouter(
    tags=["compatibility"], responses={422: {"description": "Invalid input, in the dialect's own body."}}
)
for dialect in (openrlhf, vllm, sglang, tei, slime):
    router.include_router(dialect.router)
