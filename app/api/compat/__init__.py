"""The routes of other reward servers, so that a trainer that points its URL here works unchanged; a file a dialect."""

from fastapi import APIRouter

from app.api.compat import openrlhf, sglang, slime, tei, vllm

router = APIRouter(tags=["compatibility"])
for dialect in (openrlhf, vllm, sglang, tei, slime):
    router.include_router(dialect.router)
