"""What one GPU does: `make gpu-test` (equality) and `python -m benchmarks gpu` (throughput).

Both run on a bare machine: Python, torch and transformers, no network, no weights, no virtual environment of ours. Without
a GPU they say so and exit 0. `--device cpu` runs them in a small form, which shows that they work and measures nothing.
"""
