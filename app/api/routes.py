"""Every route. To add one with a JSON body, write its handler and add a row to `JSON_ROUTES`."""

from app.api import admin, ops
from app.api.compare import compare
from app.api.compare_schemas import CompareRequest
from app.api.compat import llamafactory, openrlhf, server_info, sglang, slime, tei
from app.api.compat.vllm import pooling, scoring, tokens
from app.api.compat.vllm.errors import ERRORS as VLLM_ERRORS
from app.api.errors import NATIVE_ERRORS
from app.api.ppo_response_schemas import PPOResponse
from app.api.ppo_reward import ppo_reward
from app.api.ppo_schemas import PPORequest
from app.api.schemas import ScoreRequest, ScoreResponse
from app.api.score import score
from app.http.dispatch import JSONRoute

# fmt: off - one route per line
JSON_ROUTES = {
    ("POST", "/score"): JSONRoute(
        ScoreRequest, score, NATIVE_ERRORS, "Score by every model, or by those named", ScoreResponse
    ),
    ("POST", "/compare"): JSONRoute(CompareRequest, compare, NATIVE_ERRORS, "Margin ranking loss of preference pairs"),
    ("POST", "/ppo-reward"): JSONRoute(
        PPORequest, ppo_reward, NATIVE_ERRORS, "Rewards for PPO: select, whiten, subtract the KL penalty", PPOResponse
    ),
    ("POST", "/get_reward"): JSONRoute(
        openrlhf.GetRewardRequest, openrlhf.get_reward, openrlhf.ERRORS, "OpenRLHF: remote reward model"
    ),
    ("POST", "/pooling"): JSONRoute(
        pooling.PoolingRequest, pooling.pooling, VLLM_ERRORS, "vLLM: pooling", pooling.PoolingReply, has_bytes=True
    ),
    ("POST", "/v1/embeddings"): JSONRoute(
        pooling.EmbeddingRequest,
        pooling.embeddings,
        VLLM_ERRORS,
        "The score as an embedding of one number",
        pooling.PoolingReply,
        has_bytes=True,
    ),
    ("POST", "/classify"): JSONRoute(
        sglang.ClassifyRequest,
        sglang.classify,
        VLLM_ERRORS,
        "vLLM (input, messages) and SGLang (text, input_ids): classify",
    ),
    ("POST", "/v1/classify"): JSONRoute(
        pooling.ClassificationRequest, pooling.classify, VLLM_ERRORS, "SGLang: classify in OpenAI's style"
    ),
    ("POST", "/v1/score"): JSONRoute(
        scoring.PairScoreRequest, scoring.score, VLLM_ERRORS, "vLLM: score pairs of texts"
    ),
    ("POST", "/v1/rerank"): JSONRoute(scoring.RerankRequest, scoring.rerank, VLLM_ERRORS, "vLLM, Jina: rank documents"),
    ("POST", "/v2/rerank"): JSONRoute(scoring.RerankRequest, scoring.rerank, VLLM_ERRORS, "Cohere: rank documents"),
    ("POST", "/rerank"): JSONRoute(
        scoring.AnyRerankRequest,
        scoring.any_rerank,
        VLLM_ERRORS,
        "vLLM (documents), text-embeddings-inference (texts): rank",
    ),
    ("POST", "/tokenize"): JSONRoute(tokens.TokenizeRequest, tokens.tokenize, VLLM_ERRORS, "vLLM, SGLang: token ids"),
    ("POST", "/"): JSONRoute(tei.RootRequest, tei.root, tei.ERRORS, "text-embeddings-inference: predict, or rank"),
    ("POST", "/predict"): JSONRoute(
        tei.PredictRequest, tei.predict, tei.ERRORS, "text-embeddings-inference: sequence classification"
    ),
    ("POST", "/v1/score/evaluation"): JSONRoute(
        llamafactory.EvaluationRequest, llamafactory.evaluation, llamafactory.ERRORS, "LLaMA-Factory: reward server"
    ),
    ("POST", "/slime"): JSONRoute(slime.SlimeRequest, slime.slime, slime.ERRORS, "slime: remote reward model"),
}
"""By method and path. The dispatcher answers these; FastAPI documents them."""
# fmt: on

ROUTERS = (ops.router, admin.router, server_info.router)
"""Routes without a body, which FastAPI answers."""
