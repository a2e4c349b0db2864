"""The HTTP side: bodies in, engine and shaping calls, bodies out."""
