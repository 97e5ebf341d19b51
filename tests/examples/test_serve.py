"""Example of a server of the Open Inference Protocol."""

import json
import runpy
import shlex
import urllib.request

from web_server import WebServer


def test_serve_responds_to_the_documented_request(examples):
    example = runpy.run_path(str(examples / "serve.py"))
    command = shlex.split(example["__doc__"].partition("curl ")[2])
    body = command[command.index("-d") + 1].encode()
    headers = dict(command[at + 1].split(": ") for at, part in enumerate(command) if part == "-H")

    with WebServer(example["app"]) as server:
        url = server.url + command[-1].removeprefix("localhost:8000")
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - loopback
        with urllib.request.urlopen(request) as reply:  # noqa: S310 - loopback
            answer = json.load(reply)

    assert answer["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]
