"""Units in real packets between two network namespaces of this process."""

import asyncio
import socket
import threading

import pytest

import streaminfer as si
from streaminfer.loadtest.path import CodecThread, NetworkProfile, PacketPath, PathService
from streaminfer.loadtest.path.codec import Codecs
from streaminfer.loadtest.path.packets.packet_connection import PacketConnection
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat

PICTURES = VideoFormat(size=(32, 24), pixel_format="gray")
pytestmark = pytest.mark.needs("network namespaces")


def send(scene, network, count, *, wanted=PICTURES, **options):
    """Send frames at the rate of the device, and return their transfers and the number of tasks of the loop."""

    async def main():
        with CodecThread() as thread:
            async with PacketPath(scene, network, wanted=wanted, thread=thread, **options) as path:
                sent = []
                for _ in range(count):
                    sent.append(path.send(path.clock()))
                    await asyncio.sleep(scene.profile.period_s)
                return await asyncio.gather(*sent), len(asyncio.all_tasks())

    return asyncio.run(main())


def test_load_test_has_the_stages_of_each_picture(camera_scene):
    """Each picture has all stages: the uplink includes the delay of the network, and lost packets are sent again."""

    class Shape:
        async def call(self, request):
            return si.Response(request.inputs.shape)

    network = NetworkProfile(name="far", delay_s=0.02, loss=0.01)

    async def main():
        with CodecThread() as thread:
            path = PacketPath(camera_scene(), network, wanted=PICTURES, thread=thread, seed=3)
            async with path, PathService(Shape(), [path]) as service:
                return await si.loadtest.run(
                    service, arrivals=service.schedule(1.0), inputs=service.samples, duration_s=1.0, slo_s=2.0
                )

    record = asyncio.run(main()).record

    assert set(record.outcome) == {"ok"}
    assert list(record.stages) == ["capture", "encode", "uplink", "decode", "service"]
    assert (record.stages["uplink"] >= 0.02).all()
    assert (sum(record.stages.values()) <= record.latency_s).all()
    assert (record.values["encode_cpu_s"] > 0).all()


def test_delay_may_be_any_number_of_seconds(camera_scene):
    """A delay that is longer than any clock runs is accepted."""
    network = NetworkProfile(name="far", delay_s=1e300)

    with CodecThread() as thread:
        path = PacketPath(camera_scene(), network, wanted=PICTURES, thread=thread)

    assert path.scene.profile is not None


def test_sound_crosses(microphone_scene):
    transfers, tasks = send(microphone_scene(codec="opus"), NetworkProfile(name="n"), 20, wanted=AudioFormat())

    assert len([chunk for it in transfers for chunk in it.frames]) == pytest.approx(20 * 0.02 / 0.032, abs=2)
    assert tasks == 2  # that of asyncio.run, and the one that reads the path's packets


def test_frames_sent_at_one_instant_keep_their_order(camera_scene, monkeypatch):
    """Frames that a device delivers at the same instant keep their order.

    Frames behind a late one are delivered at its instant, and timers of one instant fire in any order.
    """
    numbers = []
    encode = Codecs.encode

    def note_and_encode(codecs, transfer, place, number, *, key):
        numbers.append(number)
        return encode(codecs, transfer, place, number, key=key)

    monkeypatch.setattr(Codecs, "encode", note_and_encode)

    async def main():
        with CodecThread() as thread:
            async with PacketPath(camera_scene(), NetworkProfile(name="n"), wanted=PICTURES, thread=thread) as path:
                handed_ns = [path.clock() + burst * 30_000_000 for burst in range(1, 9)]
                await asyncio.gather(*[path.send(at_ns - 20_000_000, at_ns) for at_ns in handed_ns for _ in range(4)])

    asyncio.run(main())

    assert numbers == sorted(numbers)


def test_full_network_drops_frames_until_a_key_frame(camera_scene):
    """A full network drops frames, and the stream continues with a key frame, which has a discontinuity.

    A frame is lost if it would wait longer than the network's queue allows.
    """
    network = NetworkProfile(name="narrow", rate=60_000, queue_s=0.1)
    transfers, _ = send(camera_scene(key_interval_s=60.0), network, 24)
    lost = [it.lost for it in transfers]

    assert "network" in lost
    assert set(lost) <= {None, "network"}
    after = [it for it, before in zip(transfers[1:], lost, strict=False) if before == "network" and it.lost is None]
    assert all(it.frames[0].discontinuity for it in after)


def test_broken_connection_fails_frames_in_flight(camera_scene):
    """A broken connection fails the frames in flight and all that are sent later."""

    async def main():
        with CodecThread() as thread:
            network = NetworkProfile(name="far", delay_s=0.1)
            async with PacketPath(camera_scene(), network, wanted=PICTURES, thread=thread) as path:
                sent = path.send(path.clock())
                path._connection.receiver.shutdown(socket.SHUT_RDWR)
                with pytest.raises(EOFError):
                    await sent
                with pytest.raises(si.Closed):
                    path.send(path.clock())

    asyncio.run(main())


def test_stop_iteration_of_prepare_ends_the_frame(camera_scene):
    def prepare(_picture):
        raise StopIteration

    async def main():
        with CodecThread() as thread:
            network = NetworkProfile(name="n")
            async with PacketPath(camera_scene(), network, wanted=PICTURES, thread=thread, prepare=prepare) as path:
                with pytest.raises(RuntimeError, match="StopIteration"):
                    await asyncio.wait_for(path.send(path.clock()), 10.0)

    asyncio.run(main())


def test_failed_connection_ends_threads_first(monkeypatch):
    """A connection that fails ends the threads that carry packets before it ends its namespaces.

    The network devices end with their namespaces, and reading from an ended device is an error.
    """
    left = []
    close = PacketConnection._close

    def note_and_close(connection):
        left.extend(thread.name for thread in threading.enumerate())
        close(connection)

    def fail(_address):
        raise OSError("no way")

    async def main():
        with pytest.raises(OSError, match="no way"):
            await PacketConnection(NetworkProfile(name="n")).__aenter__()

    monkeypatch.setattr(PacketConnection, "_close", note_and_close)
    monkeypatch.setattr(socket, "create_connection", fail)
    asyncio.run(main())

    assert {"packets", "namespace_0"} <= set(left)
    assert left.count("namespace_0") == 2


def test_format_must_be_one_of_the_device(camera_scene):
    with pytest.raises(TypeError, match="wanted: expected a VideoFormat for a camera"):
        PacketPath(camera_scene(), "wifi", wanted=AudioFormat(), thread=CodecThread())


def test_close_fails_frames_and_ends_namespaces(camera_scene):
    """Closing a path fails the frames in flight and ends the namespaces and threads of the path."""

    async def main():
        with CodecThread() as thread:
            network = NetworkProfile(name="far", delay_s=0.1)
            async with PacketPath(camera_scene(), network, wanted=PICTURES, thread=thread) as path:
                sent = path.send(path.clock())
            with pytest.raises(si.Closed):
                await sent
            with pytest.raises(si.Closed):
                path.send(path.clock())

    asyncio.run(main())

    left = {thread.name.partition("_")[0] for thread in threading.enumerate()}
    assert not left & {"packets", "namespace", "codec"}
    assert not [name for _, name in socket.if_nameindex() if name.startswith("si")]


def names_of_threads():
    return {thread.name for thread in threading.enumerate()}


def test_cancelled_close_ends_the_namespaces(camera_scene):
    async def main():
        with CodecThread() as thread:
            path = PacketPath(camera_scene(), NetworkProfile(name="n"), wanted=PICTURES, thread=thread)
            await path.__aenter__()
            closing = asyncio.ensure_future(path.aclose())
            asyncio.get_running_loop().call_soon(closing.cancel)
            await asyncio.wait([closing])
            assert closing.cancelled()

    asyncio.run(main())

    assert "packets" not in [thread.name for thread in threading.enumerate()]


def test_cancelled_connection_opening_leaves_nothing():
    """A connection whose opening is cancelled leaves no file and no thread.

    The thread that opens the connection continues, and the sockets that it makes are closed.
    """

    async def main():
        connection = PacketConnection(NetworkProfile(name="n"))
        opening = asyncio.create_task(connection.__aenter__())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        return connection.sender.fileno(), connection.receiver.fileno(), names_of_threads()

    *files, left = asyncio.run(main())

    assert files == [-1, -1]
    assert "packets" not in left


@pytest.mark.parametrize("opened", [0, 1])
def test_failed_start_of_a_path_leaves_nothing_open(camera_scene, monkeypatch, opened):
    open_connection, calls = asyncio.open_connection, []

    async def fail_later(*, sock):
        calls.append(sock)
        if len(calls) > opened:
            raise OSError("no way")
        return await open_connection(sock=sock)

    async def main():
        with CodecThread() as thread:
            path = PacketPath(camera_scene(), NetworkProfile(name="n"), wanted=PICTURES, thread=thread)
            with pytest.raises(OSError, match="no way"):
                await path.__aenter__()
            return path._connection.sender.fileno(), path._connection.receiver.fileno(), names_of_threads()

    monkeypatch.setattr(asyncio, "open_connection", fail_later)
    *files, left = asyncio.run(main())

    assert files == [-1, -1]
    assert "packets" not in left
