"""`Shadow`: callers do not notice the copies of their requests, and copies do not pile up."""

import asyncio
import contextvars

import pytest
from sleeper import Sleeper

import streaminfer as si
from streaminfer.routing import Shadow
from streaminfer.testing import HANG, ScriptedBackend, run

SEEN = contextvars.ContextVar("seen", default="nothing")


class Copies:
    """Service that records its requests, and responds or fails as the test sets it."""

    def __init__(self, *, duration_s=0.0, raises=None):
        self.duration_s = duration_s
        self.raises = raises
        self.got = []
        self.ended = 0
        self.contexts = []

    async def call(self, request):
        self.got.append(request.inputs)
        self.contexts.append(SEEN.get())
        try:
            await asyncio.sleep(self.duration_s)
        finally:
            self.ended += 1
        if self.raises is not None:
            raise self.raises
        return si.Response(-1.0)


def shadowed(loop, copies, *, model=None, **settings):
    shadow = Shadow(copies, **settings)
    return shadow, si.Stack(shadow, model or ScriptedBackend(duration_s=0.010), clock=loop.clock)


async def ask(service, count, **settings):
    return await asyncio.gather(*(service(float(number), **settings) for number in range(count)))


@pytest.mark.parametrize(
    "copies",
    [Copies(), Copies(raises=ValueError("broken")), Copies(duration_s=100.0)],
    ids=["answers", "fails", "hangs"],
)
def test_callers_notice_nothing_of_the_copy(copies):
    """The responses and their latencies are those of the service, whether the copies succeed, fail or hang."""

    async def main(loop):
        _, stack = shadowed(loop, copies, max_in_flight=100)
        async with stack as service:
            assert await ask(service, 20) == [float(number) for number in range(20)]
            assert loop.time() == pytest.approx(0.010)
            assert copies.got == [float(number) for number in range(20)]
        assert loop.time() == pytest.approx(0.010)

    run(main)


def test_every_copy_is_counted_once():
    """Each copy is counted once: as succeeded, as failed, or as cancelled by a stop."""

    async def main(loop):
        copies = Copies(duration_s=0.1)
        shadow, stack = shadowed(loop, copies, name="new faces")
        async with stack as service:
            await ask(service, 3)
            await asyncio.sleep(1.0)
            copies.raises = ConnectionError("gone")
            await ask(service, 2)
            await asyncio.sleep(1.0)
            await service(1.0)
            assert shadow.statistics().in_flight == 1
        seen = shadow.statistics()
        assert (seen.sent, seen.succeeded, seen.failed, seen.cancelled, seen.in_flight) == (6, 3, 2, 1, 0)
        assert "new faces" in shadow._repr_html_()

    run(main)


def test_the_first_failure_is_logged(caplog):
    async def main(loop):
        _, stack = shadowed(loop, Copies(raises=ConnectionError("gone")), name="new faces")
        async with stack as service:
            await ask(service, 5)

    run(main)
    assert [record.message for record in caplog.records] == [
        "shadow 'new faces': a copy of a request failed (later failures are counted only)"
    ]


def test_copies_do_not_pile_up():
    """Beyond ``max_in_flight`` copies, a request gets its response and is not copied."""

    async def main(loop):
        copies = Copies(duration_s=0.5)
        shadow, stack = shadowed(loop, copies, max_in_flight=3)
        async with stack as service:
            await ask(service, 10)
            assert len(copies.got) == 3
            await asyncio.sleep(1.0)
            await ask(service, 2)
            seen = shadow.statistics()
            assert (seen.sent, seen.skipped["max_in_flight"]) == (5, 7)

    run(main)


def test_uncancellable_copies_do_not_pile_up():
    """A copy is in flight until it has ended, even if its model ignores the cancellation at the timeout."""

    class Stubborn:
        in_flight = peak = 0

        async def call(self, request):
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                await asyncio.sleep(5.0)
            except asyncio.CancelledError:
                await asyncio.sleep(5.0)
            finally:
                self.in_flight -= 1
            return si.Response(request.inputs)

    async def main(loop):
        copies = Stubborn()
        shadow, stack = shadowed(loop, copies, max_in_flight=2, timeout_s=0.1)
        async with stack as service:
            for _ in range(100):
                await service(1.0)
                await asyncio.sleep(0.01)
            assert (copies.peak, shadow.statistics().in_flight) == (2, 2)
            await asyncio.sleep(10.0)
            assert (shadow.statistics().in_flight, shadow.statistics().failed) == (0, 2)

    run(main)


def test_a_share_of_the_requests_is_copied():
    async def main(loop):
        copies = Copies()
        _, stack = shadowed(loop, copies, share=0.25, max_in_flight=100)
        async with stack as service:
            await ask(service, 40)
            assert len(copies.got) == 10

    run(main)


def test_non_idempotent_requests_are_not_copied():
    """The constructor rejects a copy with ``idempotent = False``; only one with ``True`` gets requests of streams."""

    class Once(Copies):
        idempotent = False

    class Often(Copies):
        idempotent = True

    with pytest.raises(ValueError, match="copy: expected a service that may see copies"):
        Shadow(Once())

    async def main(loop):
        for copies, count in ((Copies(), 0), (Often(), 4)):
            shadow, stack = shadowed(loop, copies)
            async with stack as service:
                await ask(service, 4, stream_id="camera")
                assert len(copies.got) == count
                assert shadow.statistics().skipped["not_repeatable"] == 4 - count

    run(main)


def test_a_copy_ends_at_the_deadline_or_its_own_time():
    """A copy ends at the deadline of its request, or after ``timeout_s`` if the request has no deadline."""

    async def main(loop):
        copies = Copies(duration_s=100.0)
        shadow, stack = shadowed(loop, copies, timeout_s=2.0)
        async with stack as service:
            await service(1.0, timeout_s=0.5)
            await service(1.0)
            await asyncio.sleep(0.6)
            assert copies.ended == 1
            await asyncio.sleep(1.5)
            assert copies.ended == 2
            assert shadow.statistics().failed == 2

    run(main)


def test_copy_continues_after_the_request_fails():
    """A copy continues if its request fails or its caller is cancelled."""

    async def main(loop):
        copies = Copies(duration_s=0.1)
        shadow, stack = shadowed(loop, copies, model=ScriptedBackend(ConnectionError("gone"), HANG))
        async with stack as service:
            with pytest.raises(si.BackendError):
                await service(1.0)
            hanging = asyncio.ensure_future(service(2.0))
            await asyncio.sleep(0.05)
            hanging.cancel()
            await asyncio.sleep(0.2)
            assert shadow.statistics().succeeded == 2

    run(main)


def test_a_copy_has_a_context_of_its_own():
    """A copy does not see the context variables of its request, such as a trace."""

    async def main(loop):
        copies = Copies()
        _, stack = shadowed(loop, copies)
        SEEN.set("the request")
        async with stack as service:
            await service(1.0)
        assert copies.contexts == ["nothing"]

    run(main)


def test_shadow_service_starts_and_stops_with_stack():
    """The shadow service runs while the stack runs, and no task outlives the stop."""

    async def main(loop):
        copy = si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(HANG))
        _, stack = shadowed(loop, copy)
        before = asyncio.all_tasks()
        async with stack as service:
            assert copy.ready
            await ask(service, 3)
        assert not copy.ready
        assert asyncio.all_tasks() == before

    run(main)


def test_a_route_can_have_a_shadow():
    """A shadow that is a layer of a route copies the requests of this route, and does not change the responses."""

    async def main(loop):
        copies = Copies()
        router = si.FallbackRouter(
            si.Route("full", [Shadow(copies), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.01)])
        )
        async with si.Stack(router, clock=loop.clock) as service:
            assert await ask(service, 4) == [0.0, 1.0, 2.0, 3.0]
            assert len(copies.got) == 4

    run(main)


def test_the_audit_looks_into_the_shadow():
    """The audit finds a cache inside the copy service of a shadow."""
    copy = [si.EdgeCache(maxsize=10), ScriptedBackend()]
    found = si.audit(si.Stack(Shadow(copy), ScriptedBackend()))
    assert any("shadow" in finding.where for finding in found.findings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shadow(3), "copy: expected a service, a backend"),
        (lambda: Shadow(Copies(), share=-0.1), "share: expected a share from 0 to 1"),
        (lambda: Shadow(Copies(), max_in_flight=0), "max_in_flight: expected a whole number ≥ 1"),
        (lambda: Shadow(Copies(), timeout_s=0.0), "timeout_s: expected a finite number of seconds > 0"),
        (lambda: Shadow(Copies(), name=3), "name: expected a string"),
        (lambda: Shadow(Copies(), clock=3), "clock: expected a callable or None"),
        (lambda: Shadow(Copies()).wrap(ScriptedBackend()), "inner: expected a service"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_stop_ends_copies_in_order():
    """A stop cancels copies in the order of their requests, not of memory addresses, so runs in virtual time repeat."""
    sleeper = Sleeper()

    async def main(loop):
        _, stack = shadowed(loop, sleeper, max_in_flight=20)
        async with stack as service:
            await ask(service, 20)

    run(main)

    assert sleeper.cancelled == list(range(20))
