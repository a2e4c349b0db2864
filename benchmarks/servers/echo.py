"""A bare FastAPI endpoint that echoes its JSON body: the upper limit of HTTP in this stack.

`python -m benchmarks.servers.echo --port N`
"""

import argparse
from typing import Any

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.post("/score")
async def echo(body: dict[str, Any]) -> dict[str, Any]:
    return body


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(app, port=parser.parse_args().port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
