"""The arithmetic of rewards, in float64 numpy: arrays in, arrays out. No models, requests, settings or torch.

    margins      Llama 2's margins by rating (plain numbers)
    logistic     sigmoid, logit, log sigmoid
    ranking      margin ranking loss and its gradient
    selection    safety or helpfulness score: Llama 2's R_c
    combination  the rules that combine several models' scores: R_c, weighted sum, Lagrangian, worst
    whitening    statistics of batches and groups, whitening
    ragged       logprobs of several responses in one flat array
    kl           estimators of D_KL(policy || reference) per token
    pipeline     all of it: scores and logprobs -> rewards

A *score* is a head's unbounded output, a *probability* its sigmoid. Everything stays in score space, where nothing
saturates: `probability < t` is `score < logit(t)`, and the LOGIT of a selected probability is the selected score itself.
Overflow raises no error: it gives infinities or NaN, and callers that need finite numbers check for them.
"""
