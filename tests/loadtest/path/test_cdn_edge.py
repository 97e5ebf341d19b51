"""Units through a real nginx cache."""

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path

import attrs
import pytest
from waiting import until

import streaminfer as si
from streaminfer.loadtest.path import CdnEdge, MediaPath, NetworkProfile, cdn_edge
from streaminfer.loadtest.path.nginx import run_nginx
from streaminfer.streams.sources.formats import VideoFormat


def test_later_consumers_are_served_from_the_cache():
    """Only the first consumer of a unit is a cache miss; later consumers are cache hits."""
    units = [os.urandom(size) for size in (1, 1_000, 100_000)]

    async def main():
        async with CdnEdge(consumers=3) as edge:
            carried = [await edge.carry("Höhe 2, Tür?", number, unit) for number, unit in enumerate(units)]
            return carried, edge.hits, edge.misses

    assert asyncio.run(main()) == (units, 6, 3)


def test_nginx_start_error_may_have_any_bytes(tmp_path):
    """The error of an nginx that does not start has nginx's message, whatever bytes that has.

    The message repeats bytes of the configuration or of the folder's name, whatever the locale.
    """
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with (
        pytest.raises(RuntimeError, match=r'nginx does not listen: .*unknown directive "höhe"'),
        run_nginx(folder, "höhe 2;"),
    ):
        pass


def test_unit_of_an_earlier_number_is_carried_as_given():
    """A repeated number, as in a second run over one edge, gets the bytes of its own call, even in concurrent calls."""

    async def main():
        async with CdnEdge(consumers=2) as edge:
            one, two = [await edge.carry("camera", 0, unit) for unit in (b"one", b"two")]
            at_once = await asyncio.gather(*(edge.carry("camera", 1, unit) for unit in (b"a", b"b")))
            return one, two, at_once, edge.hits, edge.misses

    assert asyncio.run(main()) == (b"one", b"two", [b"a", b"b"], 4, 4)


def test_unit_is_carried_after_a_cancelled_call():
    """After a cancelled call, nginx may get a 404 for its unit; this 404 is not the response to a later call."""

    class Units(dict):
        def get(self, address):
            if calls:
                calls.pop().cancel()
                return None
            return super().get(address)

    calls = []

    async def main():
        async with CdnEdge() as edge:
            edge._units = Units()
            calls.append(asyncio.create_task(edge.carry("camera", 0, b"unit")))
            await asyncio.wait(list(calls))
            return await edge.carry("camera", 0, b"unit")

    assert asyncio.run(main()) == b"unit"


def test_edge_carries_more_devices_than_nginx_default():
    """The edge carries units of more devices at once than nginx accepts by default."""

    async def main():
        async with CdnEdge() as edge:
            carried = await asyncio.gather(*[edge.carry(f"camera-{device}", 0, b"unit") for device in range(300)])
            return set(carried), len(edge._units)

    assert asyncio.run(main()) == ({b"unit"}, 0)


def test_connections_closed_by_nginx_are_not_reused(monkeypatch):
    """Idle connections that nginx has closed are not used again.

    nginx closes a connection after 75 s without a request, as between two runs.
    """
    short = cdn_edge.CONFIGURATION.replace("keepalive_requests", "keepalive_timeout 50ms; keepalive_requests")
    monkeypatch.setattr(cdn_edge, "CONFIGURATION", short)

    async def main():
        async with CdnEdge() as edge:
            await asyncio.gather(*[edge.carry("camera", number, b"unit") for number in range(4)])
            await until(lambda: all(reader.at_eof() for reader, _ in edge._idle))
            return await edge.carry("camera", 4, b"unit"), len(edge._idle)

    assert asyncio.run(main()) == (b"unit", 1)


def test_path_through_the_edge_decodes(camera_scene):
    async def main():
        async with (
            CdnEdge() as edge,
            MediaPath(camera_scene(), NetworkProfile(name="n"), wanted=VideoFormat(), edge=edge) as path,
        ):
            transfers = await asyncio.gather(*(path.send(path.clock()) for _ in range(3)))
            return [it.lost for it in transfers], [it.stages_s["edge"] > 0 for it in transfers]

    assert asyncio.run(main()) == ([None] * 3, [True] * 3)


def test_closed_edge_leaves_no_process_or_task():
    async def main():
        async with CdnEdge() as edge:
            await edge.carry("camera", 0, b"unit")
            pid = edge._nginx.pid
        return pid, len(asyncio.all_tasks())

    pid, tasks = asyncio.run(main())
    assert not Path(f"/proc/{pid}").exists()
    assert tasks == 1


def test_cancelled_start_stops_nginx_in_its_folder(monkeypatch):
    """A start that is cancelled stops nginx while the folder of nginx still exists.

    The thread that starts nginx continues after the cancellation.
    """
    starting, goes_on, has_folder = threading.Event(), threading.Event(), []

    @contextlib.contextmanager
    def run_slowly(folder, _configuration):
        starting.set()
        goes_on.wait()
        has_folder.append(folder.exists())
        yield
        has_folder.append(folder.exists())

    monkeypatch.setattr(cdn_edge, "run_nginx", run_slowly)

    async def main():
        entering = asyncio.ensure_future(CdnEdge().__aenter__())
        await asyncio.to_thread(starting.wait)
        entering.cancel()
        asyncio.get_running_loop().call_soon(goes_on.set)
        await asyncio.wait([entering])
        assert entering.cancelled()

    asyncio.run(main())

    assert has_folder == [True, True]


def test_edge_end_fails_units_and_closes_connections():
    """An edge that ends during a call fails its units and closes their connections.

    The first consumer's response arrives after the end has begun; the second consumer's request follows it.
    """

    class Units(dict):
        def get(self, address):
            self.edge._nginx = None  # as at the end of an edge, before nginx stops
            return super().get(address)

    async def main():
        async with CdnEdge(consumers=2) as edge:
            edge._units = Units()
            edge._units.edge = edge
            with pytest.raises(si.BackendError, match="the edge has ended"):
                await edge.carry("camera", 0, b"unit")
            return len(edge._idle)

    assert asyncio.run(main()) == 0


def test_stopped_nginx_is_an_error():
    async def main():
        async with CdnEdge() as edge:
            with socket.create_server(("127.0.0.1", 0)) as free:
                edge._nginx = attrs.evolve(edge._nginx, port=free.getsockname()[1])
            with pytest.raises(si.BackendError, match="ConnectionRefusedError"):
                await edge.carry("camera", 0, b"unit")

    asyncio.run(main())


def test_unit_that_the_origin_lacks_is_an_error():
    async def main():
        async with CdnEdge() as edge:
            with pytest.raises(si.BackendError, match="404"):
                await edge._get("/camera/1")

    asyncio.run(main())


def test_carry_before_start_is_an_error():
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(CdnEdge().carry("camera", 0, b""))
