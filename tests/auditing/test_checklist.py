"""The record of processing and the privacy checklist state the settings of a stack, and what is missing."""

import asyncio
import json
import re

import numpy as np
import pytest

import streaminfer as si
from streaminfer.auditing.checklist import privacy_checklist
from streaminfer.auditing.processing_record import record_of_processing
from streaminfer.auditing.stack_audit import Audit, Finding
from streaminfer.caching.tiers import DiskTier, RedisTier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.caching.tiers.service_keys import ServiceKeys
from streaminfer.compliance.retention import Residual, Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.streams import StatefulBackend
from streaminfer.testing import FakeClock, ScriptedBackend

MASTER = b"32 bytes, from where secrets are"


def stack_of(cache):
    backend = ScriptedBackend()
    backend.fingerprint = "a model"
    return si.Stack(cache, backend)


def found(stack, check):
    return [it for it in si.audit(stack).findings if it.check == check]


# -- what the audit finds ----------------------------------------------------------------------------------------------


def test_residual_copy_without_a_bound_needs_attention():
    residual = [Residual("nightly backup", within_s=7200.0), Residual("traces")]
    bounded, unbounded = found(stack_of(si.EdgeCache(retention=Retention(9.0, residual=residual))), "residual")
    assert (bounded.severity, unbounded.severity) == ("ok", "attention")
    assert "nightly backup: gone at most 2 h after an erasure" in bounded.what
    assert "traces" in unbounded.what
    assert "within_s" in unbounded.remedy


@pytest.mark.parametrize(
    ("tiered", "allow_disk", "severity"), [(False, True, "attention"), (True, True, "ok"), (True, False, "attention")]
)
def test_a_minimum_age_wants_a_disk(tmp_path, tiered, allow_disk, severity):
    policy = Retention(9.0, classes={"invoice": Retention(9.0, min_age_s=5.0, allow_disk=allow_disk)})
    tiers = [DiskTier(tmp_path, max_bytes=2**20)] if tiered else []
    (it,) = found(stack_of(si.EdgeCache(retention=policy, tiers=tiers)), "min-age")
    assert it.severity == severity
    assert "class 'invoice' must be kept for at least 5 s" in it.what


def test_missing_writes_to_the_disk_need_attention(tmp_path):
    """Data with a minimum age needs attention if the disk did not take all writes."""
    cache = si.EdgeCache(
        retention=Retention(9.0, min_age_s=5.0), tiers=[DiskTier(tmp_path, max_bytes=2**20)], clock=FakeClock()
    )

    async def main():
        async with cache:
            await cache.put_through("k", object())

    asyncio.run(main())

    (it,) = found(stack_of(cache), "min-age")
    assert it.severity == "attention"
    assert it.what.endswith("at least 5 s; writes to the disk that were not made: 1")


def test_single_machine_keys_on_shared_tier_are_found():
    """Keys stored on one machine are a finding on a tier that several machines share."""

    class Service:
        def get(self, name, *, create):
            return b"k" * 32

        def destroy(self, name):
            return True

    for keys, number in ((StoredKeys(":memory:", master=MASTER), 1), (ServiceKeys(Service()), 0), (None, 0)):
        tier = RedisTier("redis://localhost", keys=keys)
        assert len(found(stack_of(si.EdgeCache(ttl_s=1.0, tiers=[tier])), "key-store")) == number


def test_held_erasure_is_owed_after_hold_ends(tmp_path):
    """An erasure that a legal hold rejected is owed after the hold has ended, and then fails the audit."""
    log = RetentionLog(tmp_path / "log", secret=MASTER)
    cache = si.EdgeCache(retention=Retention(9.0, log=log))

    async def main():
        await cache.hold(subject="anna", reason="case 17")
        with pytest.raises(si.ErasureHeld):
            cache.erase(subject="anna")
        (it,) = found(stack_of(cache), "log")
        assert (it.severity, "1 legal holds are in force" in it.what) == ("ok", True)
        await cache.release(subject="anna", reason="over")
        await cache.retention_report()  # waits until the log is in its file

    asyncio.run(main())
    (it,) = found(stack_of(cache), "log")
    assert it.severity == "fail"
    assert "held" in it.what


# -- the checklist -----------------------------------------------------------------------------------------------------


def finding(severity, check, **more):
    return Finding(severity=severity, check=check, where="here", what=f"{check} <is> {severity}", **more)


def test_worst_finding_decides_the_answer():
    """The worst finding decides the answer to a question, and all of its findings are listed as evidence."""
    made = privacy_checklist(
        Audit((finding("ok", "hop"), finding("fail", "hop", remedy="use TLS"), finding("attention", "tier")))
    )
    answers = {it.question: it for it in made.answers}
    assert answers["Is data encrypted on its way to other machines?"].answer == "no"
    assert answers["Is data encrypted on its way to other machines?"].evidence == (
        "here: hop <is> ok",
        "here: hop <is> fail → use TLS",
    )
    assert answers["Is stored data encrypted?"].answer == "to be looked at"
    assert answers["Can the data of one person be erased?"].answer == "not seen"


def test_every_audit_check_belongs_to_a_question(tmp_path):
    """Every check of the audit belongs to a question, and the text of findings is escaped in HTML."""
    from streaminfer.auditing import stack_audit
    from streaminfer.auditing.checklist import _QUESTIONS

    named = {
        line.strip("`") for line in stack_audit.__doc__.splitlines() if line.startswith("``") and line.endswith("``")
    }
    assert named == {check for _, checks in _QUESTIONS for check in checks}

    made = privacy_checklist(Audit(tuple(finding("ok", check) for check in named)))
    assert {it.answer for it in made.answers} == {"yes"}
    page = made.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "hop &lt;is&gt; ok" in page
    assert json.loads(made.to_json())["schema"] == "streaminfer.privacy-checklist"
    assert "hop <is> ok" in str(made)
    with pytest.raises(TypeError, match="audit: expected an Audit"):
        privacy_checklist(stack_of(si.EdgeCache(ttl_s=1.0)))


# -- the record --------------------------------------------------------------------------------------------------------


def test_record_lists_settings_and_missing_fields(tmp_path):
    """A record of processing has the settings of the stack, and lists the fields without a value as missing."""
    policy = Retention(
        3600.0,
        encrypt=True,
        classes={"face": Retention(60.0, min_age_s=10.0, encrypt=True)},
        residual=[Residual("traces"), Residual("backup", within_s=86400.0)],
    )
    keys = StoredKeys(":memory:", master=MASTER)
    cache = si.EdgeCache(retention=policy, tiers=[DiskTier(tmp_path / "c", max_bytes=2**20, keys=keys)])
    made = record_of_processing(stack_of(cache), controller="<Example> Ltd", purpose="to count faces")

    assert made.missing == ["legal_basis", "subjects", "recipients", "transfers"]
    data = json.loads(made.to_json())
    where = "stack → EdgeCache"
    assert data["categories"] == [
        {"where": where, "category": "all others", "max_age_s": 3600.0, "min_age_s": 0.0},
        {"where": where, "category": "face", "max_age_s": 60.0, "min_age_s": 10.0},
    ]
    assert [list(it.values())[1:] for it in data["places"]] == [
        ["memory", False, False, False],
        ["disk", True, False, True],
    ]
    assert [(it["copy"], it["within_s"]) for it in data["residual"]] == [("traces", None), ("backup", 86400.0)]
    assert {it["check"] for it in data["measures"]} == {"tier", "hop", "subjects", "log"}
    page = made.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "&lt;Example&gt; Ltd" in page
    assert "missing: Legal basis (Art. 6)" in page
    headings = re.findall("<th>(.*?)</th>", page[page.index("<h2>") :])
    assert headings[:4] == ["part of the stack", "category", "stored at most", "stored at least"]
    assert not {it for it in headings if "_" in it}
    assert f"<tr><td>{where}</td><td>all others</td><td>60 min</td><td>no minimum</td></tr>" in page
    assert f"<tr><td>protection of stored data</td><td>{where} → DiskTier</td>" in page


@pytest.mark.parametrize(
    ("settings", "longest_s"),
    [({"ttl_s": 60.0, "stale_s": 5.0}, 65.0), ({}, None), ({"retention": Retention(60.0)}, 60.0)],
)
def test_a_cache_without_classes_has_one_category(settings, longest_s):
    made = record_of_processing(stack_of(si.EdgeCache(**settings)))
    assert made.categories == (("stack → EdgeCache", "all answers", longest_s, 0.0),)
    assert made.residual == ()


@pytest.mark.parametrize("idle_ttl_s", [60.0, None])
def test_states_of_streams_are_a_category_of_data(idle_ttl_s):
    class Model(ScriptedBackend):
        async def infer(self, batch):
            return {"y": batch.inputs["x"], "h2": batch.inputs["h"]}

    model = StatefulBackend(Model(), state={"h": "h2"}, initial={"h": np.zeros(3)}, idle_ttl_s=idle_ttl_s)
    made = record_of_processing(si.Stack(si.AdaptiveBatcher(max_batch_size=2), model))
    where = "stack → StatefulBackend"
    assert made.categories == ((where, "states of streams, since the last request", idle_ttl_s, 0.0),)
    assert made.places == ((where, "memory", False, False, False),)


def test_complete_record_has_no_missing_fields():
    names = ("controller", "purpose", "legal_basis", "subjects", "recipients", "transfers")
    made = record_of_processing(si.Stack(ScriptedBackend()), **dict.fromkeys(names, "said"))
    assert made.missing == []
    assert "missing" not in made.to_html()
    with pytest.raises(TypeError, match="purpose: expected a string"):
        record_of_processing(si.Stack(ScriptedBackend()), purpose=3)
    with pytest.raises(TypeError, match="stack: expected a Stack"):
        record_of_processing(3)


def test_the_top_level_names_are_functions():
    assert si.privacy_checklist is privacy_checklist
    assert si.record_of_processing is record_of_processing
