"""User layers between a cache and a model: layers that change responses are part of the keys."""

import pytest

import streaminfer as si
from streaminfer.protocols import join_fingerprints
from streaminfer.sync_layer import SyncLayer
from streaminfer.testing import run
from tests.support.scripted_tier import ScriptedTier

pytestmark = pytest.mark.uncompiled


class Model:
    """Model that multiplies its input by twice its version."""

    fingerprint = "doubles 1"

    def fingerprint_changes(self):
        return int(self.fingerprint[-1])

    async def call(self, request):
        return si.Response(2.0 * request.inputs * self.fingerprint_changes(), source="model")


class Negated(SyncLayer):
    """Layer that negates responses."""

    def exit(self, request, token, outcome, now_ns):
        return si.Response(-outcome.outputs, source=outcome.source)


class Named(Negated):
    """Layer that negates responses, with a fingerprint that is the same in other processes."""

    fingerprint = "negated 1"


class Watching(SyncLayer):
    """Layer that reads responses and changes none."""

    fingerprint = ""

    def exit(self, request, token, outcome, now_ns):
        return None


class Counting(SyncLayer):
    """Layer without an exit of its own."""

    def enter(self, request, now_ns):
        return None


class Inverting:
    """Layer that negates responses in a coroutine."""

    def __init__(self, **own):
        self._own = own

    def wrap(self, inner):
        return Inverted(inner, self._own)


class Inverted:
    """Service that keeps the service that it wraps in ``inner``."""

    def __init__(self, inner, own):
        self.inner = inner
        self.__dict__.update(own)

    async def call(self, request):
        response = await self.inner.call(request)
        return si.Response(-response.outputs, source=response.source)


CHANGING = [Negated, Named, Inverting, lambda: Inverting(fingerprint="inverted 1")]
IDS = ["sync", "sync-named", "service", "service-named"]


def responses(first, second, model=None):
    """Return the responses of two stacks that share a cache and a model, with the given layers in between."""

    async def main(loop):
        cache, shared = si.EdgeCache(maxsize=8), model or Model()
        found = []
        for layers in (first, second):
            async with si.Stack(cache, *layers, shared, clock=loop.clock) as service:
                found.append(await service.call(si.Request(1.0)))
        return [(one.outputs, one.source) for one in found]

    return run(main)


@pytest.mark.parametrize("layer", CHANGING, ids=IDS)
def test_layer_that_changes_responses_splits_entries(layer):
    """A stack with the layer and a stack without it have separate entries in one cache."""
    assert responses([], [layer()]) == [(2.0, "model"), (-2.0, "model")]
    assert responses([layer()], []) == [(-2.0, "model"), (2.0, "model")]


@pytest.mark.parametrize("layer", [Watching, Counting])
def test_layer_that_changes_no_response_shares_entries(layer):
    """A layer with an empty fingerprint, or without an exit, adds nothing to the keys."""
    assert responses([], [layer()]) == [(2.0, "model"), (2.0, "cache")]


@pytest.mark.parametrize("layer", CHANGING, ids=IDS)
def test_changed_model_inside_a_layer_has_new_keys(layer):
    """The fingerprint of a layer does not hide the fingerprint of the model."""

    async def main(loop):
        model = Model()
        async with si.Stack(si.EdgeCache(maxsize=8), layer(), model, clock=loop.clock) as service:
            assert await service(1.0) == -2.0
            model.fingerprint = "doubles 2"
            assert await service(1.0) == -4.0
            assert (await service.call(si.Request(1.0))).source == "cache"

    run(main)


def test_tiers_need_the_fingerprint_of_a_layer():
    """A cache with tiers requires a fingerprint of each layer, by which another process knows the layer."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=60, clock=loop.clock, tiers=[ScriptedTier(loop.clock)])
        for layer in (Negated(), Inverting()):
            with pytest.raises(TypeError, match="layers of yours in between"):
                si.Stack(cache, layer, Model())
        for layer in (Named(), Watching(), Counting(), Inverting(fingerprint=b"1"), Inverting(fingerprint="")):
            si.Stack(cache, layer, Model())

    run(main)


def test_cache_with_tiers_must_be_inside_the_routes():
    """A cache with tiers around a router is rejected; the message says to put it into each route, where it works."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=60, clock=loop.clock, tiers=[ScriptedTier(loop.clock)])
        with pytest.raises(TypeError, match="put the cache into the stack of each"):
            si.Stack(cache, si.FallbackRouter(si.Route("full", Model())))
        routes = [si.Route(name, [cache, Model()]) for name in ("full", "front")]
        async with si.Stack(si.FallbackRouter(*routes), clock=loop.clock) as service:
            assert await service(1.0) == 2.0

    run(main)


def test_joined_fingerprints_differ_if_one_part_does():
    """Joined fingerprints differ if either part differs; a first part that is unknown or invalid stays so."""
    assert join_fingerprints("a", "b") != join_fingerprints("b", "a")
    assert join_fingerprints("a around", "b") != join_fingerprints("a", "around b")
    assert join_fingerprints(lambda: "a", lambda: b"b") == join_fingerprints("a", b"b")
    assert join_fingerprints(None, "b") is None
    assert join_fingerprints("a", None) == "a"
    assert join_fingerprints("", "b") == "b"
    assert join_fingerprints([7], "b") == [7]
