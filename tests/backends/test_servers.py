"""Servers of the tests and benchmarks: they start, break in the intended ways, and leave nothing behind."""

import asyncio
import fcntl
import gc
import json
import mmap
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import aiohttp
import grpc
import numpy as np
import pytest
from servers import environments, triton_server
from servers.certificates import Authority
from servers.drill import held_now
from servers.environments import Environment
from servers.garbage import KINDS, GrpcGarbage, HttpGarbage
from servers.keeper import family, processes
from servers.mlp import mlp_answers
from servers.network import Proxy
from servers.process import HOST, SHM, ServerProcess, free_ports, group_members
from servers.triton_server import MODELS, TritonServer
from tritonclient.grpc import service_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"
LONG_S = 30.0


def rows(count=2):
    return np.random.default_rng(4).normal(size=(count, 8)).astype(np.float32)


def ask(model, x, name="x"):
    """Return a serialized request to a model, with one input."""
    message = service_pb2.ModelInferRequest(model_name=model)
    one = message.inputs.add(name=name, datatype="FP32")
    one.shape.extend(x.shape)
    message.raw_input_contents.append(x.tobytes())
    return message.SerializeToString()


async def infer(url, request, timeout_s=LONG_S):
    async with grpc.aio.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = await channel.unary_unary(INFER)(request, timeout=timeout_s)
    return service_pb2.ModelInferResponse.FromString(answer)


def first_output(answer, columns=4):
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, columns)


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()  # the traceback of an error keeps objects of grpc alive


# -- environments ---------------------------------------------------------------------------------------------------


def test_environment_is_made_once_by_several_threads(tmp_path, monkeypatch):
    """An environment is made once, even if several threads need it at the same time."""
    ran = []
    all_began = threading.Event()
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "find_python", lambda *_, **__: "python")
    monkeypatch.setattr(environments, "_run", lambda command: (all_began.wait(), ran.append(command)))
    one = Environment("one", (("first",), ("second",)))
    threads = [threading.Thread(target=one.make) for _ in range(4)]
    for thread in threads:
        thread.start()
    all_began.set()
    for thread in threads:
        thread.join()
    assert [command[-1] for command in ran] == [str(tmp_path / ".venv-one"), "first", "second"]
    Environment("one", (("third",),)).make()  # another version of the same environment
    assert ran[-1][-1] == "third"


def test_environment_of_compiled_modules_is_per_python(tmp_path, monkeypatch):
    """An environment with our compiled modules is made once per Python version; a server's environment is made once."""
    made = []
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "find_python", lambda pythons, **_: pythons[0])
    monkeypatch.setattr(environments, "_run", made.append)
    for version in ("3.98", "3.99", "3.98"):
        monkeypatch.setattr(environments, "THIS_PYTHON", (version,))
        Environment("ours", (), pythons=(version,)).make()
        Environment("server", ()).make()
    assert [(command[0], Path(command[-1]).name) for command in made] == [
        ("3.98", ".venv-ours-3.98"),
        ("3.11", ".venv-server"),
        ("3.99", ".venv-ours-3.99"),
    ]


def test_an_environment_that_failed_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "find_python", lambda *_, **__: "/bin/false")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"/bin/false -m venv .*\nended with 1"):
            Environment("one", ()).make()


def test_environment_made_elsewhere_is_awaited_briefly(tmp_path, monkeypatch):
    """An environment that another process is making is awaited, but only up to a time limit."""
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "MAX_STEP_S", 0.0)
    folder = tmp_path / ".venv-one"
    folder.mkdir()
    other = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=r"another process has been making .*\.venv-one for 0 s"):
            Environment("one", ()).make()
    finally:
        os.close(other)


def test_an_installation_that_does_not_end_is_an_error(monkeypatch):
    monkeypatch.setattr(environments, "MAX_STEP_S", 0.01)
    with pytest.raises(RuntimeError, match=r"sleep 1000\ndid not end in 0 s"):
        environments._run(["sleep", "1000"])


def test_machine_without_fitting_python_is_an_error(monkeypatch):
    """If the machine has no suitable Python, the error says what is missing."""
    monkeypatch.setattr(environments, "_candidates", lambda _: ["/no/such/python"])
    with pytest.raises(RuntimeError, match=r"needs Python 3\.11 or 3\.12 with a shared libpython on PATH; found: none"):
        environments.find_python(shared_libpython=True)


def test_found_python_has_shared_libpython():
    """The Python that is found has the shared library that the server embeds."""
    found = environments.find_python(shared_libpython=True)
    probe = "import sysconfig as s, os; print(os.path.exists(s.get_config_var('LIBDIR') + '/' + s.get_config_var('INSTSONAME')))"
    assert subprocess.run([found, "-c", probe], capture_output=True, text=True, check=True).stdout == "True\n"


# -- processes ------------------------------------------------------------------------------------------------------


class Arbiter(ServerProcess):
    """Server whose worker process has a session of its own, as BentoML's worker does."""

    def __init__(self):
        super().__init__(0)

    def prepare(self):
        script = """
            import pathlib, signal, subprocess
            worker = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            pathlib.Path("starting").write_text(str(worker.pid))
            pathlib.Path("starting").rename("worker")
            signal.pause()
        """
        return [sys.executable, "-c", textwrap.dedent(script)], os.environ

    def is_ready(self):
        return (self.folder / "worker").exists()


@pytest.mark.parametrize("end", [ServerProcess.stop, ServerProcess.kill])
def test_worker_in_its_own_session_ends_with_server(end):
    """A worker with a session of its own ends with its server.

    A worker that survived would keep its inherited files open, and a reader of a benchmark's pipe would wait forever.
    """
    with Arbiter() as server:
        worker = int((server.folder / "worker").read_text())
        its_output = Path(f"/proc/{worker}/fd/2").readlink()

        end(server)

    assert its_output == server.log
    assert worker not in processes()


def test_a_family_has_the_descendants_of_a_group():
    with Arbiter() as server:
        worker = int((server.folder / "worker").read_text())

        assert family([server.pid]) == {server.pid, worker}
        assert worker not in group_members(server.pid)


# -- Triton ---------------------------------------------------------------------------------------------------------


def test_triton_answers_with_each_kind_of_model(triton):
    x = rows()

    async def main():
        for model in ("mlp", "mlp_batched"):
            np.testing.assert_allclose(first_output(await infer(triton.grpc_url, ask(model, x))), mlp_answers(x), 1e-5)
        ensemble = await infer(triton.grpc_url, ask("mlp_ensemble", x))
        np.testing.assert_allclose(first_output(ensemble), 2 * mlp_answers(x) + 1, 1e-5, 1e-6)
        image = np.arange(3 * 224 * 224, dtype=np.float32).reshape(1, 3, 224, 224)
        same = await infer(triton.grpc_url, ask("image_identity", image))
        assert same.raw_output_contents[0] == image.tobytes()
        ends = await infer(triton.grpc_url, ask("image_ends", image))
        assert first_output(ends, 2).tolist() == [[0.0, 3 * 224 * 224 - 1]]

    asyncio.run(main())
    assert "nv_inference_request_success" in triton.metrics()
    assert set(triton.models) == set(MODELS)


def test_the_queue_delay_of_triton_can_be_set(triton):
    def delay():
        config = json.loads(triton.answers(triton.ports[0], "/v2/models/mlp_batched/config")[1])
        return config["dynamic_batching"]["max_queue_delay_microseconds"]

    before = delay()
    triton.set_max_queue_delay(777)
    assert delay() == 777
    triton.set_max_queue_delay(before)
    assert delay() == before


def test_killed_model_fails_requests_of_ready_server(fragile_triton):
    """Requests to a killed model fail, although the server still reports that the model and the server are ready."""
    fragile_triton.kill_model("mlp")
    with pytest.raises(grpc.aio.AioRpcError, match="is not healthy") as caught:
        asyncio.run(infer(fragile_triton.grpc_url, ask("mlp", rows())))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert fragile_triton.answers(fragile_triton.ports[0], "/v2/models/mlp/ready")[0] == 200
    assert fragile_triton.is_ready()
    fragile_triton.repair("mlp")
    answer = asyncio.run(infer(fragile_triton.grpc_url, ask("mlp", rows())))
    np.testing.assert_allclose(first_output(answer), mlp_answers(rows()), 1e-5)


def test_a_frozen_server_answers_when_it_is_thawed(fragile_triton):
    async def main():
        fragile_triton.freeze()
        late = asyncio.ensure_future(infer(fragile_triton.grpc_url, ask("mlp", rows())))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(fragile_triton.grpc_url, ask("mlp", rows()), 0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not late.done()
        fragile_triton.thaw()
        np.testing.assert_allclose(first_output(await late), mlp_answers(rows()), 1e-5)

    asyncio.run(main())


def test_restart_reuses_ports_and_leaves_nothing(fragile_triton):
    """A restart keeps the ports, and leaves no process and no shared memory of the old server."""
    pid, before = fragile_triton.pid, set(fragile_triton.shm_files())
    assert before
    fragile_triton.restart()
    assert fragile_triton.pid != pid
    assert not group_members(pid)
    assert not before & set(fragile_triton.shm_files())
    asyncio.run(infer(fragile_triton.grpc_url, ask("mlp", rows())))


def test_terminated_server_exits_cleanly(fragile_triton):
    fragile_triton.terminate()
    assert fragile_triton.wait(LONG_S) == 0
    assert not fragile_triton.running


def test_server_restarts_after_a_failed_start(fragile_triton, monkeypatch):
    monkeypatch.setattr(fragile_triton, "_command", ["false"])
    with pytest.raises(RuntimeError, match="not ready after"):
        fragile_triton.restart()
    monkeypatch.undo()

    fragile_triton.restart()
    assert fragile_triton.is_whole()


def test_start_is_repeated_if_model_process_crashes(fragile_triton, monkeypatch, caplog):
    """Triton's start is repeated if the process of a model crashes during it.

    This crash is a defect of Triton 2.51, and it ends the server too.
    """
    crash = ["sh", "-c", f"echo {triton_server.STUB_CRASH}; kill -ABRT $$"]
    monkeypatch.setattr(fragile_triton, "_command", crash)
    fragile_triton.restart()  # the failed start forgets the command, so the repeated start runs Triton

    assert fragile_triton.is_whole()
    # a set: Triton itself may crash in the repeated start too
    assert {record.message for record in caplog.records} == {
        "Triton's process for a model crashed; it is started again"
    }


@pytest.mark.parametrize("said", [triton_server.STUB_CRASH, "Signal (11) received"])
def test_load_is_repeated_if_model_process_crashes(fragile_triton, monkeypatch, said):
    """A load is repeated if the model's process crashes during it; any other end of the server is an error."""
    answers = fragile_triton.answers

    def crash(*arguments, **options):
        monkeypatch.undo()
        fragile_triton.kill()
        with fragile_triton.log.open("a") as log:
            log.write(said)
        return answers(*arguments, **options)

    monkeypatch.setattr(fragile_triton, "answers", crash)
    if said == triton_server.STUB_CRASH:
        fragile_triton.load("mlp")
        assert fragile_triton.is_whole()
    else:
        with pytest.raises(RuntimeError, match="load of mlp: HTTP 0"):
            fragile_triton.load("mlp")


@pytest.mark.usefixtures("_servers")
def test_server_and_files_end_with_a_killed_owner():
    script = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        from servers.triton_server import TritonServer
        with TritonServer(["mlp"]) as server:
            print(server.pid, server.folder, server.shm_prefix, len(server.shm_files()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(environments.ROOT / "benchmarks")]
    owner = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert owner.returncode == -signal.SIGKILL
    pid, folder, prefix, files = owner.stdout.split()
    assert int(files) > 0
    give_up = time.monotonic() + LONG_S
    while group_members(int(pid)) or Path(folder).exists() or list(SHM.glob(f"{prefix}*")):
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.usefixtures("_servers")
def test_server_that_fails_to_start_leaves_nothing():
    """The error of a server that does not start says why, and the server leaves no folder and no process."""
    server = TritonServer([], options=["--no-such-option"])
    with pytest.raises(RuntimeError, match="no-such-option"):
        server.start()
    assert not server.folder.exists()
    assert not server.running


def test_shared_memory_is_held_while_named_or_mapped():
    """Shared memory that this process made counts as held while it has a name or is mapped."""
    other = SHM / f"streaminfer-1-{os.getppid()}.0-1"
    ours = SHM / f"streaminfer-1-{os.getpid()}.0-1"
    before = held_now().shared_memory
    try:
        other.touch()
        ours.write_bytes(bytes(4096))
        assert held_now().shared_memory - before == {ours.name}
        with ours.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            ours.unlink()
            assert held_now().shared_memory - before == {ours.name}
        assert held_now().shared_memory == before
    finally:
        for path in (other, ours):
            path.unlink(missing_ok=True)


def test_unknown_models_are_rejected():
    with pytest.raises(ValueError, match=r"models must be of mlp, .* got tpu"):
        TritonServer(["tpu"])


# -- MLServer -------------------------------------------------------------------------------------------------------


def test_mlserver_answers(mlserver):
    answer = asyncio.run(infer(mlserver.grpc_url, ask("mlp", rows())))
    np.testing.assert_allclose(first_output(answer), mlp_answers(rows()), 1e-5)


# -- the network ----------------------------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.data_received = transport.write


async def echoing(use, **settings):
    """Call ``use(proxy)`` with a proxy to an echo server."""
    server = await asyncio.get_running_loop().create_server(Echo, HOST, 0)
    async with server, Proxy(f"{HOST}:{server.sockets[0].getsockname()[1]}", **settings) as proxy:
        await use(proxy)
    hang_up()


OPENED = []


async def connect(proxy, **tls):
    host, port = proxy.url.split(":")
    OPENED.append(await asyncio.open_connection(host, int(port), **tls))
    return OPENED[-1]


def hang_up():
    for _, writer in OPENED:
        writer.transport.abort()
    OPENED.clear()


async def exchange(connection, text=b"hello"):
    reader, writer = connection
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), LONG_S)


async def is_silent(connection, text=b"hello"):
    try:
        async with asyncio.timeout(0.05):
            await exchange(connection, text)
    except TimeoutError:
        return True
    return False


def test_a_proxy_forwards_and_counts():
    async def use(proxy):
        one, other = await connect(proxy), await connect(proxy)
        assert await exchange(one) == b"hello"
        assert await exchange(other, b"x" * 300_000) == b"x" * 300_000
        assert proxy.connections == 2
        one[1].close()
        assert await other[0].read(0) == b""
        while proxy.connections == 2:
            await asyncio.sleep(0)
        assert proxy.accepted == 2
        other[1].close()

    asyncio.run(echoing(use))


@pytest.mark.parametrize("direction", [{}, {"answers": False}, {"requests": False}])
def test_a_stalled_proxy_continues_without_loss(direction):
    async def use(proxy):
        old = await connect(proxy)
        assert await exchange(old) == b"hello"
        proxy.stall(**direction)
        new = await connect(proxy)
        assert await is_silent(old, b"first")
        assert await is_silent(new, b"third")
        proxy.flow()
        assert await old[0].readexactly(5) == b"first"
        assert await new[0].readexactly(5) == b"third"

    asyncio.run(echoing(use))


def test_only_forgotten_connection_stays_silent():
    """A connection that the proxy forgets stays silent forever, while new connections work."""

    async def use(proxy):
        old = await connect(proxy)
        assert await exchange(old) == b"hello"
        proxy.forget()
        assert await is_silent(old)
        assert await exchange(await connect(proxy)) == b"hello"
        proxy.flow()
        assert await is_silent(old)

    asyncio.run(echoing(use))


def test_proxy_cuts_refuses_and_accepts_on_one_port():
    """A proxy cuts connections, rejects new ones, and accepts them again on the same port."""

    async def use(proxy):
        one = await connect(proxy)
        assert await exchange(one) == b"hello"
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await exchange(one)
        url = proxy.url
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        await proxy.accept()
        assert proxy.url == url
        assert await exchange(await connect(proxy)) == b"hello"

    asyncio.run(echoing(use))


def test_target_completes_calls_of_cut_off_client():
    """The target completes the calls that were in flight when their client was cut off.

    If a connection ends, its gRPC calls are cancelled, and that can crash a Triton before 2.57.
    """

    async def main():
        sent, cut = asyncio.Event(), asyncio.Event()
        ends = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            await reader.readexactly(5)
            sent.set()
            await cut.wait()
            writer.write(b"hello")
            try:
                async with asyncio.timeout(0.05):
                    at_once = await reader.read()
            except TimeoutError:
                at_once = None
            ends.set_result((at_once, await reader.read()))
            writer.close()

        server = await asyncio.start_server(serve, HOST, 0)
        async with server, Proxy(f"{HOST}:{server.sockets[0].getsockname()[1]}") as proxy:
            reader, writer = await connect(proxy)
            writer.write(b"hello")
            await asyncio.wait_for(sent.wait(), LONG_S)
            proxy.cut()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            cut.set()
            assert await asyncio.wait_for(ends, LONG_S) == (None, b"")
            assert proxy.connections == 0
        hang_up()

    asyncio.run(main())


def test_proxy_ends_connection_if_target_refuses():
    """A proxy ends the connection of its client if the target rejects the proxy's connection."""

    async def main():
        (port,) = free_ports(1)
        async with Proxy(f"{HOST}:{port}") as proxy:
            reader, _ = await connect(proxy)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            hang_up()

    asyncio.run(main())


def test_proxy_adds_noise_delay_and_bandwidth_limit():
    async def use(proxy):
        one = await connect(proxy)
        proxy.noise = True
        assert await exchange(one) != b"hello"
        proxy.noise = False
        for settings, at_least_s in ((("delay_s", 0.03), 0.06), (("bytes_per_s", 100.0), 0.1)):
            setattr(proxy, *settings)
            began = asyncio.get_running_loop().time()
            assert await exchange(one) == b"hello"
            assert (
                asyncio.get_running_loop().time() - began >= at_least_s - 0.002
            )  # the delay applies in each direction; the loop's clock is coarse
            proxy.delay_s, proxy.bytes_per_s = 0.0, None

    asyncio.run(echoing(use))


def test_proxy_terminates_tls_and_mutual_tls(authority, tmp_path):
    """A proxy terminates TLS, and requires a client certificate if it is configured for mutual TLS."""
    stranger = Authority(tmp_path)
    client = authority.issue("client")

    def trusting(trusted):
        return ssl.create_default_context(cafile=str(trusted.certificate))

    async def use_tls(proxy):
        assert await exchange(await connect(proxy, ssl=trusting(authority))) == b"hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(proxy, ssl=trusting(stranger))
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await connect(proxy, ssl=trusting(authority), server_hostname="elsewhere")

    async def use_mutual_tls(proxy):
        known = trusting(authority)
        known.load_cert_chain(client.certificate, client.key)
        assert await exchange(await connect(proxy, ssl=known)) == b"hello"
        with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
            await exchange(await connect(proxy, ssl=trusting(authority)))

    asyncio.run(echoing(use_tls, tls=authority.server_context()))
    asyncio.run(echoing(use_mutual_tls, tls=authority.server_context(clients=authority)))


def test_free_ports_are_outside_the_ephemeral_range():
    """Free ports are distinct and unused, and lie below the range from which the system assigns ports."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < 32_768
    for port in ports:
        socket.create_server((HOST, port)).close()


# -- garbage --------------------------------------------------------------------------------------------------------


def is_sound(shape, datatype, name, size):
    """Return whether the description and content size of an output match each other and the model."""
    return (shape, datatype, name, size) == ([2, 4], "FP32", "y", 32)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_grpc_garbage_has_the_configured_kind(triton, kind):
    async def main():
        async with GrpcGarbage(triton.grpc_url) as fake:
            fake.kind = kind
            async with grpc.aio.insecure_channel(fake.url) as channel:
                return fake.spoilt, await channel.unary_unary(INFER)(ask("mlp", rows()), timeout=LONG_S), fake.spoilt

    before, body, after = asyncio.run(main())
    assert (before, after) == (0, kind is not None)
    try:
        answer = service_pb2.ModelInferResponse.FromString(body)
        one = answer.outputs[0]
        sound = is_sound(list(one.shape), one.datatype, one.name, len(answer.raw_output_contents[0]))
    except Exception:
        assert kind in {"noise", "empty", "no_output"}
    else:
        assert sound is (kind is None)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_http_garbage_has_the_configured_kind(triton, kind):
    question = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 8], "data": rows().reshape(-1).tolist()}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }

    async def main():
        async with HttpGarbage(triton.http_url) as fake, aiohttp.ClientSession() as session:
            fake.kind = kind
            async with session.post(f"http://{fake.url}/v2/models/mlp/infer", json=question) as answer:
                return answer.headers, await answer.read()

    headers, body = asyncio.run(main())
    size = int(headers["Inference-Header-Content-Length"])
    try:
        one = json.loads(body[:size])["outputs"][0]
        sound = is_sound(one["shape"], one["datatype"], one["name"], len(body) - size)
    except (ValueError, IndexError):
        assert kind in {"noise", "empty", "no_output"}
    else:
        assert sound is (kind is None)


def test_calls_besides_inference_reach_the_server(triton):
    """Calls other than inference pass through the garbage proxy unchanged, as do their errors."""

    async def main():
        async with GrpcGarbage(triton.grpc_url) as fake, grpc.aio.insecure_channel(fake.url) as channel:
            fake.kind = "noise"
            method = "/inference.GRPCInferenceService/ModelMetadata"
            question = service_pb2.ModelMetadataRequest(name="mlp").SerializeToString()
            found = service_pb2.ModelMetadataResponse.FromString(await channel.unary_unary(method)(question))
            assert found.inputs[0].name == "x"
            unknown = service_pb2.ModelMetadataRequest(name="tpu").SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(unknown)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    asyncio.run(main())
