"""Stacks on a real Ray: in one process, and on two nodes of which one is killed."""

import json
import socket
from pathlib import Path

import pytest
from ray_environment import ROOT, run_with_ray


def json_of(done):
    # the script's own lines first: Ray's threads write much more when the script ends
    said = [line for line in done.stderr.splitlines() if " s: " in line]
    assert done.returncode == 0, "\n".join([*said, done.stderr[-4000:]])
    # Ray's own processes print too
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def local():
    """Return the results of the script in Ray's local testing mode."""
    return json_of(run_with_ray(Path(__file__).with_name("ray_local.py")))


def on_two_nodes(script):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return json_of(run_with_ray(Path(__file__).with_name(script), str(port)))


@pytest.fixture(scope="module")
def cluster():
    """Return the results of the script on two nodes."""
    return on_two_nodes("ray_cluster.py")


def test_a_deployment_runs_without_a_cluster(local):
    """Ray's local testing mode runs the example, and a recurrent model whose streams begin and end."""
    assert local["doubles"] == [2.0, 4.0, 6.0, 8.0]
    assert local["outcomes"] == {"ok": 1}
    assert (local["sum"], local["again"]) == (6, 5)
    assert local["late"].startswith("TimeoutError")
    assert local["wrong"] == "stack_factory: expected a function that returns a Stack, got 5 (int)"


def test_local_deployment_runs_beside_ray(local):
    """A deployment runs locally in a process that uses Ray.

    There is no replica context then, although Ray is initialized.
    """
    assert local["beside Ray"] == 7


def test_deployment_names_wrong_arguments(local):
    """A stack in place of a stack factory is an error, although a stack is callable; so is an unknown router."""
    assert local["wrong arguments"] == [
        "stack_factory: expected a function that returns a Stack, got <Stack, new: ScriptedBackend> (Stack)",
        "headroom_router: expected True or False, got 'round robin' (str)",
    ]


def test_a_replica_tells_ray_how_busy_it_is(local):
    assert local["routing"]["number"] == 1
    assert local["routing"]["service_s"] > 0
    assert set(local["autoscaling"]) == {"queue_delay_s", "burn_rate", "utilization"}
    assert local["healthy"] is None


def test_options_reach_the_deployment(local):
    router = "streaminfer.serving.ray.headroom_router.HeadroomRouter"
    assert local["options"] == [3, 7, 7.0, router, 0.2]
    assert local["autoscaling of Ray"] == 2
    assert local["default"] is True
    assert local["other version"] is True


def test_the_example_prints_its_response():
    done = run_with_ray(ROOT / "examples" / "ray_serve.py")
    assert done.stdout.splitlines()[-1] == "[2.0, 4.0, 6.0, 8.0]"


def test_deadline_ends_request_behind_ray_proxy(cluster):
    """A deadline ends a request in the batcher behind the proxy of Ray."""
    found = cluster["deadlines"]
    assert found["http"] == found["last"] == [200, [3.0]]
    status, error = found["late"]
    assert status == 504
    assert "left" in error
    assert found["late for both"][0] in {408, 504}
    assert found["outcomes"]["ok"] == 2  # neither of the late ones ran to its end


def test_replicas_are_added_and_removed_by_queue_delay(cluster):
    """One replica runs without load.

    The script fails unless Ray adds a second replica while requests queue, and removes it after the load.
    """
    assert cluster["replicas without load"] == 1


def test_streams_survive_replacing_both_replicas(cluster):
    """While both replicas are replaced, no step of a stream fails, is lost or runs twice."""
    assert cluster["streams"]["two replicas"]["failed"] == cluster["streams"]["two replicas"]["lost"] == 0
    replaced = cluster["streams"]["replaced"]
    assert replaced["failed"] == replaced["lost"] == 0
    assert replaced["moves"]["moved"] >= 12
    assert replaced["moves"]["resumed"] == replaced["moves"]["restarted"] == 0


def test_streams_of_killed_node_resume_from_snapshot(cluster):
    """Streams of a killed node resume from a snapshot, none starts again, and no step takes 6 s.

    The script checks that each response follows from an earlier state of its stream.
    A stream loses the steps of two snapshot intervals at most, which are 100 steps of 10 ms.
    """
    killed = cluster["streams"]["killed"]
    assert killed["moves"]["resumed"] > 0
    assert killed["moves"]["restarted"] == 0
    assert killed["lost"] <= 100
    assert killed["longest_s"] < 6.0


def test_serving_behind_haproxy_survives_killed_node():
    """No replica fails a request while both are replaced, or soon after a node is killed.

    After the node is killed, the script waits for 50 successful requests in a row.
    """
    found = on_two_nodes("ray_data_plane.py")

    assert found["first"] == found["replaced"] == [200]
    assert found["late"] == 504
