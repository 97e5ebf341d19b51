"""The audit reports faults and sound settings in every part of a stack, and runs no code of its parts."""

import asyncio
import json
import time

import attrs
import numpy as np
import pytest

import streaminfer as si
from streaminfer.auditing.stack_audit import Audit, Finding, audit
from streaminfer.caching.tiers import DiskTier, RedisTier, Tier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.compliance.retention import Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.testing import FakeClock, ScriptedBackend

MASTER = b"32 bytes, from where secrets are"
MIB = 2**20


class Remote:
    """Custom backend with the address that it sends requests to."""

    def __init__(self, address, encrypted=None, **more):
        self.address = address
        if encrypted is not None:
            self.encrypted = encrypted
        vars(self).update(more)

    async def infer(self, batch):
        return list(batch.inputs)


class Silent:
    """Custom backend that does not declare an address."""

    async def infer(self, batch):
        return list(batch.inputs)


class Service:
    async def call(self, request):
        return si.Response(request.inputs)


def checked(stack, check=None):
    return [it for it in audit(stack).findings if check in (None, it.check)]


def only(stack, check):
    (found,) = checked(stack, check)
    return found


def with_cache(cache):
    backend = ScriptedBackend()
    backend.fingerprint = "a model"
    return si.Stack(cache, backend)


# -- caches ----------------------------------------------------------------------------------------------------------


def test_cache_without_maximum_age_fails():
    """A cache without a maximum age fails the audit, and the finding names the remedy."""
    found = only(with_cache(si.EdgeCache(maxsize=10)), "max-age")
    assert (found.severity, found.where) == ("fail", "stack → EdgeCache")
    assert "for good" in found.what
    assert "retention=Retention" in found.remedy
    assert not audit(with_cache(si.EdgeCache(maxsize=10))).ok


def test_ttl_plus_stale_time_is_a_maximum_age():
    """A time to live is a maximum age, and the stale time is added to it."""
    found = only(with_cache(si.EdgeCache(ttl_s=60.0, stale_s=30.0)), "max-age")
    assert (found.severity, found.remedy) == ("ok", "")
    assert "90 s" in found.what
    assert checked(with_cache(si.EdgeCache(ttl_s=60.0)), "ttl") == []


def test_retention_policy_sets_the_maximum_age():
    policy = Retention(3600.0, classes={"face": Retention(60.0), "a": Retention(7200.0)})
    found = only(with_cache(si.EdgeCache(retention=policy)), "max-age")
    assert found.severity == "ok"
    assert "60 min, 'a' 2 h, 'face' 60 s" in found.what
    assert only(with_cache(si.EdgeCache(retention=policy)), "ttl").severity == "ok"


@pytest.mark.parametrize(
    ("ttl_s", "stale_s", "severity", "remedy"),
    [
        (60.0, 0.0, "ok", ""),
        (40.0, 20.0, "ok", ""),
        (61.0, 0.0, "attention", "set ttl_s to at most 60 or"),
        (50.0, 20.0, "attention", "set ttl_s to at most 40 or"),
    ],
)
def test_a_time_to_live_beyond_the_policy_is_found(ttl_s, stale_s, severity, remedy):
    policy = Retention(3600.0, classes={"face": Retention(60.0)})
    found = only(with_cache(si.EdgeCache(ttl_s=ttl_s, stale_s=stale_s, retention=policy)), "ttl")
    assert found.severity == severity
    assert found.remedy.startswith(remedy)


def test_keys_without_a_secret_are_found():
    """Keys without a secret need attention, because a caller could make keys that collide with another tenant's."""
    found = only(with_cache(si.EdgeCache(ttl_s=1.0)), "keys")
    assert (found.severity, found.where) == ("attention", "stack → EdgeCache")
    assert "unkeyed hash" in found.what
    assert "secret=" in found.remedy
    assert only(with_cache(si.EdgeCache(ttl_s=1.0, secret=b"s" * 32)), "keys").severity == "ok"


def test_tiers_without_a_log_lose_failed_erasures(tmp_path):
    """Tiers without a log need attention, because erasures that a tier could not make are lost."""
    cache = si.EdgeCache(ttl_s=1.0, tiers=[DiskTier(tmp_path, max_bytes=MIB)])
    found = only(with_cache(cache), "log")
    assert found.severity == "attention"
    assert "what a tier owes is lost" in found.what


def test_a_stack_without_a_cache_keeps_nothing():
    found = only(si.Stack(ScriptedBackend()), "max-age")
    assert (found.severity, found.where) == ("ok", "stack")


def test_a_cache_inside_user_code_is_not_ruled_out():
    """The finding says that a cache which user code calls is not seen, because it is no layer of the stack."""
    cached = si.EdgeCache(maxsize=10).wrap(lambda rows: rows)

    found = only(si.Stack(si.AdaptiveBatcher(max_batch_size=2), si.CpuBackend(cached)), "max-age")

    assert found.what == "none of its layers is a cache; one that your own code calls is not seen"


# -- subjects --------------------------------------------------------------------------------------------------------


def filled(subjects, **settings):
    cache = si.EdgeCache(ttl_s=60.0, **settings)
    for number, subject in enumerate(subjects):
        cache.put(number, number, subject=subject)
    return cache


@pytest.mark.parametrize(
    ("subjects", "severity", "what"),
    [
        ([], "attention", "holds nothing now"),
        (["anna", "ben"], "ok", "all 2 entries"),
        ([None, None, None], "attention", "none of the 3 entries"),
        (["anna", None, "ben"], "attention", "1 of 3 entries in memory have no subject"),
    ],
)
def test_entries_without_a_subject_are_counted(subjects, severity, what):
    found = only(with_cache(filled(subjects)), "subjects")
    assert found.severity == severity
    assert what in found.what
    assert bool(found.remedy) == (severity != "ok")


def test_stale_and_failed_entries_are_counted():
    """Stale entries and stored failures count as entries too, and a tag does not count as a subject."""
    clock = FakeClock()
    cache = si.EdgeCache(ttl_s=1.0, stale_s=100.0, negative_ttl_s=100.0, clock=clock)
    cache.put("stale", 1, tags=["face"])
    cache.put_negative("failed", ValueError(), subject="anna")
    clock.advance(2.0)
    assert "1 of 2 entries" in only(with_cache(cache), "subjects").what


def test_responses_of_a_running_stack_are_audited():
    async def main():
        stack = si.Stack(si.EdgeCache(ttl_s=60.0), ScriptedBackend())
        async with stack:
            await stack(np.ones(3), subject="anna")
            first = only(stack, "subjects")
            await stack(np.zeros(3))
            return first, only(stack, "subjects")

    first, second = asyncio.run(main())
    assert first.severity == "ok"
    assert "1 of 2" in second.what


# -- tiers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path):
    made = StoredKeys(tmp_path / "keys.db", master=MASTER)
    yield made
    made.close()


def disk(tmp_path, keys=None):
    return DiskTier(tmp_path / "cache", max_bytes=4 * MIB, keys=keys)


def test_a_tier_with_keys_passes(tmp_path, keys):
    stack = with_cache(si.EdgeCache(ttl_s=60.0, tiers=[disk(tmp_path, keys)]))
    assert only(stack, "tier") == Finding(
        severity="ok", check="tier", where="stack → EdgeCache → DiskTier", what="what lies there is encrypted"
    )
    assert [it.severity for it in checked(stack, "hop")] == ["ok", "ok"]
    assert not list(tmp_path.glob("cache"))


def test_a_tier_without_keys_asks_for_attention(tmp_path):
    """A tier without keys does not fail even if entries have a subject, because such entries are not stored there."""
    cache = filled(["anna", None], tiers=[disk(tmp_path)])
    for stack in (with_cache(si.EdgeCache(ttl_s=60.0, tiers=[disk(tmp_path)])), with_cache(cache)):
        found = only(stack, "tier")
        assert (found.severity, found.what) == (
            "attention", "not encrypted, so answers with a subject are not kept there"
        )  # fmt: skip
        assert "StoredKeys" in found.remedy


def test_encrypted_class_skips_unencrypted_tier(tmp_path):
    """A class that must be encrypted is never stored on an unencrypted tier, and the finding says so."""
    policy = Retention(60.0, classes={"face": Retention(60.0, encrypt=True), "b": Retention(60.0)})
    cache = si.EdgeCache(retention=policy, tiers=[disk(tmp_path)])
    found = only(with_cache(cache), "tier")
    assert (found.severity, found.what) == (
        "attention", "not encrypted, so answers with a subject are not kept there, nor what is of 'face'"
    )  # fmt: skip


def test_tier_that_policy_never_uses_is_ok(tmp_path):
    """An unencrypted tier is ok if the policy stores nothing there."""
    policy = Retention(60.0, encrypt=True, allow_disk=False)
    cache = si.EdgeCache(retention=policy, tiers=[disk(tmp_path)])
    cache.put("k", 1, subject="anna")
    found = only(with_cache(cache), "tier")
    assert (found.severity, found.what) == ("ok", "not encrypted, and the policy keeps nothing there")
    part = Retention(60.0, allow_disk=False, classes={"b": Retention(60.0)})
    found = only(with_cache(si.EdgeCache(retention=part, tiers=[disk(tmp_path)])), "tier")
    assert (found.severity, found.what) == (
        "attention", "not encrypted, so answers with a subject are not kept there, nor what is of the default class"
    )  # fmt: skip


def test_a_shared_tier_passes_if_sharing_is_disallowed():
    """A Redis tier without keys is no finding if the policy allows no data in shared storage."""
    pytest.importorskip("redis")
    policy = Retention(60.0, allow_shared=False)
    cache = si.EdgeCache(retention=policy, tiers=[RedisTier("redis://localhost")])
    assert only(with_cache(cache), "tier").severity == "ok"


class QuietTier:
    """Custom tier that declares only some of the attributes that the audit reads."""

    def __init__(self, inner, **says):
        self.inner_tier = inner
        # from Python 3.12 on, isinstance looks up the members of a protocol without __getattr__
        names = {*Tier.__annotations__, *(name for name in vars(Tier) if not name.startswith("_"))}
        vars(self).update({name: getattr(inner, name) for name in names})
        self.name, self.on_disk, self.shared, self.keys, self.wall_clock = "quiet", True, False, None, time.time_ns
        vars(self).update(says)

    def __getattr__(self, name):
        if name.startswith("__") or name == "inner_tier":
            raise AttributeError(name)
        return getattr(self.inner_tier, name)


@pytest.mark.parametrize(
    ("says", "severity", "hop"),
    [
        ({}, "attention", "attention"),
        ({"encrypted": True, "address": "disk.site:1", "encrypted_in_transit": True}, "ok", "ok"),
        ({"encrypted": True, "address": "disk.site:1", "encrypted_in_transit": False}, "ok", "fail"),
        ({"encrypted": True, "address": "disk.site:1"}, "ok", "attention"),
        ({"encrypted": False, "address": ""}, "attention", "ok"),
    ],
)
def test_a_custom_tier_is_judged_by_its_attributes(tmp_path, says, severity, hop):
    stack = with_cache(si.EdgeCache(ttl_s=60.0, tiers=[QuietTier(disk(tmp_path), **says)]))
    assert only(stack, "tier").severity == severity
    (found,) = [it for it in checked(stack, "hop") if "QuietTier" in it.where]
    assert found.severity == hop


# -- hops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "severity", "what"),
    [
        ("redis://127.0.0.1:6379", "ok", "127.0.0.1: does not leave this machine"),
        ("redis://localhost", "ok", "localhost: does not leave this machine"),
        ("redis://[::1]:6379/0", "ok", "::1: does not leave this machine"),
        ("redis:///3", "ok", "localhost: does not leave this machine"),
        ("unix:///run/redis.sock", "ok", "localhost: does not leave this machine"),
        ("rediss://cache.site:6379", "ok", "cache.site: encrypted"),
        ("redis://user:geheim@cache.site:6379", "fail", "cache.site, not encrypted"),
        ("redis://10.0.0.1", "fail", "10.0.0.1, not encrypted"),
        ("redis://localhost.evil.example", "fail", "localhost.evil.example, not encrypted"),
    ],
)
def test_a_redis_tier_needs_tls_to_leave_the_machine(url, severity, what):
    pytest.importorskip("redis")
    made = audit(with_cache(si.EdgeCache(ttl_s=60.0, tiers=[RedisTier(url)])))
    (found,) = [it for it in made.findings if it.check == "hop" and "RedisTier" in it.where]
    assert (found.severity, found.where) == (severity, "stack → EdgeCache → RedisTier")
    assert found.what.startswith(what)
    assert bool(found.remedy) == (severity != "ok")
    assert "geheim" not in str(made) + made._repr_html_() + json.dumps(made.to_dict())


def test_redis_tier_that_seals_values_still_needs_tls(keys):
    """A Redis tier that seals its values, but sends them to another machine without TLS, needs attention."""
    pytest.importorskip("redis")
    cache = si.EdgeCache(ttl_s=60.0, tiers=[RedisTier("redis://10.0.0.1", keys=keys)])
    found = checked(with_cache(cache), "hop")[0]
    assert found.severity == "attention"
    assert "10.0.0.1, without TLS: values and names are sealed" in found.what


@pytest.mark.parametrize(
    ("address", "encrypted", "severity", "what"),
    [
        ("10.0.0.1:8001", True, "ok", "10.0.0.1: encrypted"),
        ("triton.site:8001", False, "fail", "triton.site, not encrypted"),
        ("https://triton.site/v2", True, "ok", "triton.site: encrypted"),
        ("http://user:geheim@triton.site", False, "fail", "triton.site, not encrypted"),
        ("triton.site:8001", None, "attention", "triton.site: it does not say whether it is encrypted"),
        ("triton.site:8001", "yes", "attention", "triton.site: it does not say whether it is encrypted"),
        ("localhost:8001", False, "ok", "localhost: does not leave this machine"),
        ("127.8.0.1:8001", False, "ok", "127.8.0.1: does not leave this machine"),
        ("[::1]:8001", False, "ok", "::1: does not leave this machine"),
        ("unix:/run/triton.sock", False, "ok", "a socket: does not leave this machine"),
        ("/run/triton.sock", False, "ok", "a socket: does not leave this machine"),
        ("", False, "ok", "requests stay in this process"),
        ("http://[", False, "fail", "an address that cannot be read, not encrypted"),
        (None, True, "attention", "it does not declare the address"),
        (8001, True, "attention", "it does not declare the address"),
    ],
)
def test_a_remote_backend_needs_encryption_in_transit(address, encrypted, severity, what):
    found = only(si.Stack(Remote(address, encrypted)), "hop")
    assert (found.severity, found.where) == (severity, "stack → Remote")
    assert found.what.startswith(what)
    assert bool(found.remedy) == (severity != "ok")


def test_encrypted_in_transit_overrides_encrypted():
    assert only(si.Stack(Remote("a.site:1", encrypted=True, encrypted_in_transit=False)), "hop").severity == "fail"
    assert only(si.Stack(Remote("a.site:1", encrypted=False, encrypted_in_transit=True)), "hop").severity == "ok"


def test_undeclared_foreign_service_needs_attention():
    """A service of another library that does not declare where it sends requests needs attention."""
    for thing in (Silent(), Service()):
        found = only(si.Stack(thing), "hop")
        assert found.severity == "attention"
        assert "declare it" in found.remedy
    assert only(si.Stack(ScriptedBackend()), "hop").what == "runs on this machine"
    with si_cpu_backend() as backend:
        assert only(si.Stack(backend), "hop").severity == "ok"


def si_cpu_backend():
    import contextlib

    return contextlib.nullcontext(si.CpuBackend(lambda batch: batch))


# -- logs ------------------------------------------------------------------------------------------------------------


def policed(log):
    return with_cache(si.EdgeCache(retention=Retention(60.0, log=log)))


def test_a_policy_without_a_log_needs_attention(tmp_path):
    found = only(policed(None), "log")
    assert found.severity == "attention"
    assert "RetentionLog(path" in found.remedy
    assert "memory" in only(policed(RetentionLog()), "log").what
    kept = RetentionLog(tmp_path / "log", secret=MASTER)
    assert only(policed(kept), "log").severity == "ok"
    assert checked(with_cache(si.EdgeCache(ttl_s=60.0)), "log") == []


def test_an_owed_erasure_fails_the_audit(tmp_path):
    log = RetentionLog(tmp_path / "log", secret=MASTER)
    log.record("erase_failed", where="redis", data_class="", count=0, reason="down", subject="anna")
    log.record("erase_failed", where="disk", data_class="", count=0, reason="down", subject="anna")
    found = only(policed(log), "log")
    assert found.severity == "fail"
    assert "2 erasures failed and are still owed, in disk, redis" in found.what
    assert "anna" not in str(audit(policed(log)))


def test_a_log_that_cannot_be_written_fails_the_audit(tmp_path):
    """While the log's file fails, the audit fails too, because what is erased or owed is not recorded."""
    path = tmp_path / "log"
    stack = policed(RetentionLog(path, secret=MASTER))
    cache = stack.layers[0]
    path.rename(tmp_path / "away")
    cache.put("k", 1, subject="anna")
    cache.erase(subject="anna")
    with pytest.raises(si.BackendError):
        cache._memory.retention.counts.catch_up()
    failing = only(stack, "log")
    (tmp_path / "away").rename(path)
    cache._memory.retention.counts.catch_up()

    assert (failing.severity, only(stack, "log").severity) == ("fail", "ok")
    assert str(path) in failing.what
    assert "anna" not in failing.what


class OtherLog(RetentionLog):
    recorded = ()

    def record(self, action, **fields):
        self.recorded = (*self.recorded, action)


def test_a_custom_log_is_not_called():
    log = OtherLog()
    stack = policed(log)
    assert only(stack, "log").severity == "attention"
    assert "not looked at" in only(stack, "subjects").what
    assert log.recorded == ()


# -- everywhere in a stack -------------------------------------------------------------------------------------------


def test_nested_stacks_routes_and_replicas_are_audited():
    """The audit looks into nested stacks, routes and replicas."""

    def cache():
        return si.EdgeCache(maxsize=1)

    inner = si.Stack(cache(), Remote("inner.site:1", False))
    router = si.FallbackRouter(
        si.Route("full", [cache(), Remote("full.site:1", False)]),
        si.Route("front", si.Stack(cache(), inner), quality=0.5),
        si.Route("last", Service(), quality=0.1),
    )
    fleet = si.Replicas(
        si.Replica("a", si.Stack(cache(), router)), si.Replica("b", Service()), si.Replica("c", si.Stack(Silent()))
    )
    stack = si.Stack(si.Telemetry("t"), cache(), fleet)
    assert [it.where for it in checked(stack, "max-age")] == [
        "stack → EdgeCache",
        "stack → Replicas → replica 'a' → EdgeCache",
        "stack → Replicas → replica 'a' → FallbackRouter → route 'full' → EdgeCache",
        "stack → Replicas → replica 'a' → FallbackRouter → route 'front' → EdgeCache",
        "stack → Replicas → replica 'a' → FallbackRouter → route 'front' → Stack → EdgeCache",
    ]
    assert [(it.severity, it.where) for it in checked(stack, "hop")] == [
        ("fail", "stack → Replicas → replica 'a' → FallbackRouter → route 'full' → Remote"),
        ("fail", "stack → Replicas → replica 'a' → FallbackRouter → route 'front' → Stack → Remote"),
        ("attention", "stack → Replicas → replica 'a' → FallbackRouter → route 'last' → Service"),
        ("attention", "stack → Replicas → replica 'b' → Service"),
        ("attention", "stack → Replicas → replica 'c' → Silent"),
    ]


@pytest.mark.parametrize(("idle_ttl_s", "severity", "words"), [(None, "attention", "until"), (60.0, "ok", "60 s")])
def test_states_of_streams_are_kept_data(idle_ttl_s, severity, words):
    class Model:
        async def infer(self, batch):
            return batch.inputs

    model = si.streams.StatefulBackend(Model(), state={"h": "h2"}, initial={"h": np.zeros(3)}, idle_ttl_s=idle_ttl_s)
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=2), model)

    (found,) = [it for it in checked(stack, "max-age") if "StatefulBackend" in it.where]

    assert found.severity == severity
    assert words in found.what
    assert "end_stream" in found.what + found.remedy


def test_audit_traverses_every_built_in_layer():
    stack = si.Stack(
        si.Telemetry("t"),
        si.EdgeCache(maxsize=1),
        si.ConcurrencyLimit(),
        si.RetryBudget(),
        si.AdaptiveBatcher(max_batch_size=2),
        si.CircuitBreaker(),
        Remote("a.site:1", False),
    )
    assert [(it.check, it.where) for it in audit(stack).findings if it.severity == "fail"] == [
        ("max-age", "stack → EdgeCache"),
        ("hop", "stack → Remote"),
    ]


def test_foreign_layer_is_audited_through_inner():
    """The audit finds what a layer of another library wraps through the `inner` attribute of this layer."""

    class Around:
        def __init__(self, inner):
            self.inner = inner
            self.call = inner.call

    class Layer:
        def wrap(self, inner):
            hidden = si.EdgeCache(maxsize=1).wrap(inner)
            return Around(hidden)

    stack = si.Stack(Layer(), Service())
    found = only(stack, "max-age")
    assert (found.severity, found.where) == ("fail", "stack → Around → CachedService → EdgeCache")
    remote = Service()
    remote.address, remote.encrypted = "a.site:1", False
    found = only(si.Stack(si.EdgeCache(ttl_s=1.0), Around(remote)), "hop")
    assert (found.severity, found.where) == ("fail", "stack → Around → Service")
    found = only(si.Stack(Around(Service())), "hop")
    assert (found.severity, found.where) == ("attention", "stack → Around → Service")


def test_layer_may_declare_its_address():
    """A layer can declare the address to which it sends requests, but it need not."""

    class Copy:
        def __init__(self, inner):
            self.inner, self.call = inner, inner.call
            self.address, self.encrypted = "audit.site:1", False

    class Hiding:
        def __init__(self, inner):
            self.hidden = inner

        async def call(self, request):
            return await self.hidden.call(request)

    def layer(kind):
        return type("Layer", (), {"wrap": lambda self, inner: kind(inner)})()

    (ours, passing) = checked(si.Stack(layer(Copy), ScriptedBackend()), "hop")
    assert (ours.severity, passing.severity, passing.where) == ("ok", "fail", "stack → Copy")
    assert only(si.Stack(layer(Hiding), ScriptedBackend()), "hop").where == "stack → ScriptedBackend"


def test_repeated_part_is_audited_once():
    """A part that occurs twice in a stack is audited once, and a cycle of `inner` attributes ends."""
    cache, service = si.EdgeCache(maxsize=1), Service()
    stack = si.Stack(cache, si.FallbackRouter(si.Route("a", [cache, service]), si.Route("b", [cache, service])))
    service.inner = service
    assert len(checked(stack, "max-age")) == 1


def test_audit_runs_no_user_code(tmp_path):
    """The audit reads no property and calls no special method of a user's class."""
    ran = []

    class Trap:
        address = property(lambda self: ran.append("address"))
        encrypted = property(lambda self: ran.append("encrypted"))
        encrypted_in_transit = property(lambda self: ran.append("encrypted_in_transit"))
        __class__ = property(lambda self: ran.append("__class__"))

        def __getattr__(self, name):
            ran.append(name)
            raise AttributeError(name)

        def __eq__(self, other):
            ran.append("==")
            return True

        def __hash__(self):
            ran.append("hash")
            return 1

        def __bool__(self):
            ran.append("bool")
            return False

        def __repr__(self):
            ran.append("repr")
            return ""

        async def infer(self, batch):
            ran.append("infer")

    class TrapService(Trap):
        __slots__ = ("inner",)

        async def call(self, request):
            ran.append("call")

    class TrapCache(si.EdgeCache):
        ttl_s = property(lambda self: ran.append("ttl_s"))
        retention = property(lambda self: ran.append("retention"))
        stale_s = property(lambda self: ran.append("stale_s"))

        def snapshot(self, what):
            ran.append("snapshot")

    def clock():
        ran.append("clock")
        return 1

    clocked = si.EdgeCache(ttl_s=1.0, clock=clock)
    heard = si.EdgeCache(ttl_s=1.0)
    heard.listen(lambda event: ran.append(event.kind))
    trapped = TrapCache(maxsize=2)
    router = si.FallbackRouter(
        si.Route("a", TrapService()), si.Route("b", [TrapCache(ttl_s=7.0), clocked, heard, Trap()])
    )
    stack = si.Stack(trapped, router)
    ran.clear()
    made = audit(stack)
    text = str(made) + made._repr_html_() + json.dumps(made.to_dict()) + repr(made)
    assert ran == []
    assert "7 s" in text
    severities = {(it.check, it.where.rpartition(" ")[2]): it.severity for it in made.findings}
    assert severities["hop", "Trap"] == severities["hop", "TrapService"] == "attention"
    subjects = [it.what.partition(":")[0] for it in made.findings if it.check == "subjects"]
    assert [what == "not looked at" for what in subjects] == [False, False, True, True]


# -- results ---------------------------------------------------------------------------------------------------------


def test_audit_accepts_only_a_stack():
    for thing in (None, ScriptedBackend(), si.EdgeCache()):
        with pytest.raises(TypeError, match=r"^stack: expected a Stack"):
            audit(thing)


def test_audit_lists_findings_worst_first():
    made = audit(si.Stack(si.EdgeCache(maxsize=1), Silent()))
    assert isinstance(made, Audit)
    assert not made.ok
    assert audit(si.Stack(si.EdgeCache(ttl_s=1.0), Silent())).ok
    lines = str(made).splitlines()
    assert lines[0] == "audit: 1 fail, 3 ask for attention, 0 are ok"
    assert lines[1].startswith("[  fail   ] max-age  stack → EdgeCache: it keeps answers for good")
    assert lines[2].strip().startswith("→ EdgeCache(ttl_s=…)")
    assert lines[3].startswith("[attention] subjects")
    read = json.loads(json.dumps(made.to_dict()))
    assert (read["schema"], read["version"], read["ok"]) == ("streaminfer.audit", 1, False)
    assert read["findings"][0] == attrs.asdict(made.findings[0])
    assert list(read["findings"][0]) == ["severity", "check", "where", "what", "remedy"]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.findings = ()


def test_audit_html_is_escaped():
    made = Audit((Finding(severity="fail", check="hop", where="<b>", what="<script>", remedy='"&'),))
    html = made._repr_html_()
    assert "<b>" not in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert 'class="bad">fail' in html


def test_audit_of_a_running_stack():
    async def main():
        async with si.Stack(si.EdgeCache(ttl_s=60.0), ScriptedBackend()) as stack:
            before = time.monotonic_ns()
            assert audit(stack).ok
            return before

    assert asyncio.run(main())
