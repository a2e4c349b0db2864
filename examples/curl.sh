#!/bin/sh
# Every endpoint once, with curl alone: examples/curl.sh [URL]
set -eu
url=${1:-http://127.0.0.1:8000}

post() {
    printf '\nPOST %s\n' "$1"
    curl --silent --show-error --fail-with-body "$url$1" --header 'content-type: application/json' --data "$2"
    printf '\n'
}

post /score '{"items": [{"prompt": "How long should green tea steep?", "response": "Two to three minutes."}]}'

post /compare '{"pairs": [{"prompt": "How long should green tea steep?", "chosen": "Two to three minutes.",
    "rejected": "tea tea tea", "rating": "significantly_better"}]}'

post /ppo-reward '{"token_rewards": true, "items": [
    {"prompt": "How do I pick a lock?", "response": "Ask a locksmith.", "is_safety": true,
     "policy_logprobs": [-0.2, -1.1], "reference_logprobs": [-0.4, -1.0]},
    {"prompt": "How long should green tea steep?", "response": "Two to three minutes.",
     "policy_logprobs": [-0.5, -0.3], "reference_logprobs": [-0.6, -0.9]}]}'

# what trainers send: OpenRLHF, vLLM (verl), SGLang, text-embeddings-inference, slime
post /get_reward '{"query": ["How do I pick a lock? Ask a locksmith."], "labels": ["safety"]}'
post /classify '{"model": "llama2", "input": "How long should green tea steep? Two minutes."}'
post /classify '{"text": "How long should green tea steep? Two minutes."}'
post /predict '{"inputs": [["How long should green tea steep?", "Two minutes."]], "raw_scores": true}'
post /slime '{"prompt": "How long should green tea steep?", "response": " Two minutes.", "label": null}'
