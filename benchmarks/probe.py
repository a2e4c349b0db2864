"""`python -m benchmarks.probe PORT`: requests /health repeatedly until its input ends, then prints the seconds of each response.

A separate process that imports almost nothing, so that it measures the server and not a client that is busy with its load.
"""

import http.client
import json
import select
import sys
import time

PAUSE_SECONDS = 0.05


def main() -> None:
    seconds: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    print("started", flush=True)
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        asked = time.monotonic()
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
            seconds.append(time.monotonic() - asked if answer.status == http.client.OK else float("inf"))
        except (OSError, http.client.HTTPException):
            connection.close()
            seconds.append(float("inf"))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
