"""The tested servers: how to start each, send it texts and read its responses; two servers are part of this package."""
