"""text -> Sequence (token ids) -> queue -> token-budget batch -> prefix tree -> one packed forward -> scores.

Knows nothing of HTTP: it raises `app.errors` and its caller maps them.
"""
