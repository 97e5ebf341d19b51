"""Real packets between two network namespaces, with the delay and the loss of a network profile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streaminfer.loadtest.path.network import Link, network_profile

ROOT = Path(__file__).parents[3]
PACKETS, BYTES, HEADERS = 200, 200, 28
PROFILE = {"name": "bursts", "delay_s": 0.03, "jitter_s": 0.01, "loss": 0.2, "loss_run": 5.0}
SEND = f"""
import json, socket, time
print("ready", flush=True)
input()
sent_ns = []
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for number in range({PACKETS}):
        sent_ns.append(time.monotonic_ns())
        sender.sendto(number.to_bytes({BYTES}, "big"), ("10.203.8.2", 9000))
print(json.dumps(sent_ns), flush=True)
input()
"""
RECEIVE = """
import json, socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
    receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE: all of them may wait here
    receiver.bind(("0.0.0.0", 9000))
    receiver.settimeout(30)
    print("ready", flush=True)
    came = []
    while len(came) < int(sys.argv[1]):
        came.append((int.from_bytes(receiver.recv(2048), "big"), time.monotonic_ns()))
    print(json.dumps(came), flush=True)
    input()
"""


def start(*command):
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.needs("network namespaces")
def test_packets_are_lost_and_delayed_by_the_profile(tmp_path):
    """Exactly the packets that a link of the same seed loses are missing; the others arrive in order, none early."""
    file = tmp_path / "bursts.json"
    file.write_text(json.dumps(PROFILE))
    lost = Link(network_profile(file), 3)
    expected = [number for number in range(PACKETS) if lost.send(BYTES + HEADERS, 0) is not None]
    namespace = ("unshare", "--net", sys.executable, "-c")
    processes = [start(*namespace, SEND), start(*namespace, RECEIVE, str(len(expected)))]
    sender, receiver = processes
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        script = str(ROOT / "benchmarks" / "servers" / "lossy_network.py")
        pids = (str(process.pid) for process in processes[:2])
        processes.append(start(sys.executable, script, *pids, "--network", str(file), "--seed", "3"))
        assert processes[2].stdout.readline() == "up\n"
        sender.stdin.write("\n")
        sender.stdin.flush()
        sent_ns = json.loads(sender.stdout.readline())
        came = json.loads(receiver.stdout.readline())
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    link = Link(network_profile(file), 3)
    earliest_ns = [link.send(BYTES + HEADERS, at_ns) for at_ns in sent_ns]
    assert [number for number, _ in came] == expected
    assert all(earliest_ns[number] <= at_ns for number, at_ns in came)
    assert 0.1 < 1 - len(expected) / PACKETS < 0.35
