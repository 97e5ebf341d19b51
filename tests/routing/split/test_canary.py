"""`Canary`: its share of the requests, and tenants and streams that stay on their side."""

import asyncio
import subprocess
import sys

import pytest

import streaminfer as si
from streaminfer.protocols import Admission
from streaminfer.routing import Canary
from streaminfer.routing.split.share import RequestShare
from streaminfer.testing import HANG, ScriptedBackend, run


def model(**settings):
    return [si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.001, **settings)]


def sides(canary, requests):
    """Send requests through a canary; return the side that responded to each."""

    async def main(loop):
        async with si.Stack(canary, clock=loop.clock) as service:
            return [(await service.call(request)).source.split("/")[0] for request in requests]

    return run(main)


def test_a_tenant_stays_on_its_side():
    """About the share of the tenants goes to the canary, and each tenant always goes to the same side."""
    canary = Canary(model(), model(), share=0.2)
    requests = [si.Request(1.0, tenant=f"tenant {number}") for number in range(500)]
    first, second = sides(canary, requests), sides(canary, requests)
    assert first == second
    assert 70 < first.count("canary") < 130
    seen = canary.statistics()
    assert seen.canary.requests == seen.canary.succeeded == 2 * first.count("canary")
    assert seen.stable.succeeded + seen.canary.succeeded == 1000


def test_larger_share_adds_tenants_and_keeps_others():
    """A larger share adds tenants to the canary and removes none, so tenants that used the new model keep it."""
    requests = [si.Request(1.0, tenant=str(number)) for number in range(300)]
    canary = Canary(model(), model(), share=0.1)
    before = sides(canary, requests)
    canary.set_share(0.4)
    after = sides(canary, requests)
    assert after.count("canary") > before.count("canary") > 0
    assert all(late == "canary" for early, late in zip(before, after, strict=True) if early == "canary")


def test_requests_without_a_tenant_are_spread_evenly():
    """Of the first requests, however many, the share goes to the canary, to within one request."""
    found = sides(Canary(model(), model(), share=0.25), [si.Request(1.0)] * 100)
    counts = [found[:count].count("canary") for count in range(101)]
    assert all(abs(canaries - count / 4) <= 1 for count, canaries in enumerate(counts))


def test_a_stream_stays_with_its_model():
    """A stream without a tenant stays on one side, because a model may keep its state."""
    requests = [si.Request(1.0, stream_id=number % 50) for number in range(200)]
    found = sides(Canary(model(), model(), share=0.5), requests)
    assert found[:50] == found[50:100] == found[100:150]
    assert 10 < found[:50].count("canary") < 40


def test_another_key_than_the_tenant():
    """Requests for which ``by`` returns the same key go to the same side."""
    canary = Canary(model(), model(), share=0.5, by=lambda request: request.subject)
    requests = [si.Request(1.0, tenant=str(number), subject="one") for number in range(20)]
    assert len(set(sides(canary, requests))) == 1


@pytest.mark.parametrize(("share", "side"), [(0.0, "stable"), (1.0, "canary")])
def test_share_of_zero_and_of_one(share, side):
    requests = [si.Request(1.0, tenant=str(number) if number % 2 else None) for number in range(50)]
    assert set(sides(Canary(model(), model(), share=share), requests)) == {side}


def test_a_tenant_has_the_same_side_in_every_process():
    """The side of a tenant does not depend on the process, and canaries of different names draw different tenants."""
    code = (
        "from streaminfer.routing.split.share import RequestShare\n"
        "share = RequestShare(0.5, 'faces')\n"
        "print([share.has_key(str(n)) for n in range(50)])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = RequestShare(0.5, "faces")
    other = RequestShare(0.5, "voices")
    drawn = [here.has_key(str(number)) for number in range(50)]
    assert printed.strip() == str(drawn)
    assert drawn != [other.has_key(str(number)) for number in range(50)]


def test_admission_is_that_of_the_side():
    """``admission`` is that of the side that the request would go to, and changes nothing."""

    class Says:
        def __init__(self, reason):
            self.reason = reason

        async def call(self, request):
            return si.Response(1.0)

        def admission(self, request, now_ns):
            return Admission(False, self.reason)

    canary = Canary(Says("stable"), Says("canary"), share=0.5)
    for _ in range(4):
        foreseen = [canary.admission(si.Request(1.0), 0).reason for _ in range(3)]
        answer = asyncio.run(canary.call(si.Request(1.0)))
        assert set(foreseen) == {answer.source}
    tenants = [si.Request(1.0, tenant=str(number)) for number in range(20)]
    assert [canary.admission(request, 0).reason for request in tenants] == [
        asyncio.run(canary.call(request)).source for request in tenants
    ]


def test_failures_are_counted_at_the_side_that_failed():
    """An error of the canary reaches its caller and changes only the counters of the canary."""

    async def main(loop):
        canary = Canary(model(), ScriptedBackend(ConnectionError("gone"), HANG), share=1.0)
        async with si.Stack(canary, clock=loop.clock) as service:
            with pytest.raises(si.BackendError):
                await service(1.0)
            hanging = asyncio.ensure_future(service(1.0))
            await asyncio.sleep(1.0)
            hanging.cancel()
            await asyncio.wait({hanging})
        seen = canary.statistics()
        assert (seen.canary.requests, seen.canary.failed, seen.canary.cancelled) == (2, 1, 1)
        assert (seen.stable.requests, seen.to_dict()["share"]) == (0, 1.0)
        assert "canary" in canary._repr_html_()

    run(main)


def test_a_deadline_is_a_failure_of_its_side():
    """A request that the stack cancels at its deadline is a failure of its side; one that its caller cancels is not."""

    class Hangs:
        async def call(self, request):
            await asyncio.Event().wait()

    async def main(loop):
        canary = Canary(Hangs(), Hangs(), share=1.0)
        async with si.Stack(canary, clock=loop.clock) as service:
            with pytest.raises(si.DeadlineExceeded):
                await service(1.0, timeout_s=0.1)
            hanging = asyncio.ensure_future(service(1.0, timeout_s=0.1))
            await asyncio.sleep(0.05)
            hanging.cancel()
            await asyncio.wait({hanging})
        seen = canary.statistics().canary
        assert (seen.requests, seen.failed, seen.cancelled) == (2, 1, 1)

    run(main)


def test_both_sides_start_and_stop():
    """Both sides run while the stack runs; if one side cannot start, the other is stopped again."""
    stable, second = si.Stack(*model()), si.Stack(*model())

    class Broken:
        async def call(self, request):
            """Never reached."""

        async def start(self):
            raise ConnectionError("no model")

    async def main(loop):
        async with si.Stack(Canary(stable, second, share=0.5), clock=loop.clock):
            assert stable.ready
            assert second.ready
        assert not stable.ready
        assert not second.ready
        with pytest.raises(ConnectionError, match="no model"):
            await si.Stack(Canary(stable, Broken(), share=0.5), clock=loop.clock).start()
        assert not stable.ready

    run(main)


def test_capabilities_combine_both_sides():
    """A canary enforces deadlines if both sides do, and is not idempotent if one side is not."""

    class Once:
        idempotent = False

        async def call(self, request):
            """Never reached."""

    both = Canary(model(), model(), share=0.5).capabilities()
    one = Canary(model(), Once(), share=0.5).capabilities()
    assert (both.enforces_deadline, both.idempotent) == (True, None)
    assert (one.enforces_deadline, one.idempotent) == (False, False)
    slow = [si.AdaptiveBatcher(max_batch_size=4, slo_s=0.25), ScriptedBackend()]
    assert Canary(slow, model(), share=0.5).slo_ns == 250_000_000


def test_the_audit_looks_into_both_sides():
    """The audit finds a cache inside a side of a canary."""
    cache = si.EdgeCache(maxsize=10)
    found = si.audit(si.Stack(Canary(model(), [cache, *model()], share=0.5)))
    assert any("canary" in finding.where for finding in found.findings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Canary(model(), model(), share=1.5), "share: expected a share from 0 to 1, got 1.5"),
        (lambda: Canary(model(), model(), share=0.5, by=3), "by: expected a function of a Request"),
        (lambda: Canary(model(), model(), share=0.5, name=3), "name: expected a string"),
        (lambda: Canary(3, model(), share=0.5), "stable: expected a service, a backend"),
        (lambda: Canary(model(), 3, share=0.5), "canary: expected a service, a backend"),
        (lambda: Canary(model(), model(), share=0.5).set_share("all"), "share: expected a share from 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_cache_around_a_canary_sees_model_changes():
    """The `fingerprint_changes` of a canary is the sum of both sides."""

    class Changing(ScriptedBackend):
        changes = 0

        def fingerprint_changes(self):
            return self.changes

    stable, canary = Changing(), Changing()
    batcher = si.AdaptiveBatcher(max_batch_size=4), si.AdaptiveBatcher(max_batch_size=4)
    both = Canary([batcher[0], stable], [batcher[1], canary], share=0.5)
    stable.changes, canary.changes = 2, 3
    assert both.capabilities().fingerprint_changes() == 5
