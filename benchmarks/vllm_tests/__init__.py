"""vLLM's own tests of its online pooling routes, run against this service.

`__main__` runs in this project's environment; `server` and `reference` run in the environment that has vLLM.
"""
