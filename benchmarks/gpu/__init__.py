"""Checks and measures one GPU: `make gpu-test` (equality) and `python -m benchmarks gpu` (throughput).

Both need only Python, torch and transformers: no network, no weights, no virtual environment. Without a GPU they print a message
and exit with 0. `--device cpu` runs a small version, which shows that they work but measures nothing.
"""
