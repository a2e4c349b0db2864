"""Runs against a service on 127.0.0.1:8000 (`make serve`), or the one that `--url` names."""
