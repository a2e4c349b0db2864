"""The HTTP side: bodies in, engine and reward calls, bodies out."""
