"""HTTP: uvicorn's server, connections, access rules, telemetry and the dispatch of JSON routes."""
