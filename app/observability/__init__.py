"""Logs, metrics, traces and the request context that they share."""
