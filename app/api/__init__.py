"""The routes: request bodies to engine and reward calls, and their results to response bodies."""
