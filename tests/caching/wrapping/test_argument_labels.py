"""Subject and tags of the results of a wrapped function: the values of named parameters."""

import asyncio

import pytest
from scripted_tier import Model, ScriptedTier, cache_of

import streaminfer as si
from streaminfer.compliance.retention import Retention
from streaminfer.errors import InvalidInput
from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled


def embed(image, patient=None, *, site="north", words=()):
    return image * 2


async def embed_later(image, patient=None, *, site="north", words=()):
    return image * 2


def test_labels_erase_responses_of_a_subject():
    """An erasure by subject erases the results of a sync function for that subject, and no others."""
    cache = si.EdgeCache()
    wrapped = cache.wrap(embed, subject="patient")
    for patient in ("anna", "ben", None):
        wrapped(1, patient)

    assert (cache.erase(subject="anna"), len(cache)) == (1, 2)
    wrapped(1, "ben")
    assert cache.statistics().hits == 1


def test_labels_erase_by_tag_of_an_async_function():
    """Several parameters can be tags, each with one string or several; a default value counts as given."""

    async def main():
        cache = si.EdgeCache()
        wrapped = cache.wrap(embed_later, tags=("site", "words"))
        await wrapped(1)
        await wrapped(2, site="south", words=["a", "b"])
        return cache.erase(tag="b"), cache.erase(tag="north"), len(cache)

    assert asyncio.run(main()) == (1, 1, 0)


def test_labels_reach_the_tiers():
    """Entries of a tier, refreshed entries and stored errors have the labels as well."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier, stale_s=5.0, negative_ttl_s=60.0) as cache:
            wrapped = cache.wrap(embed_later, subject="patient", tags=("site",))
            await wrapped(1, "anna")
            await asyncio.sleep(11.0)
            await wrapped(1, "anna")
            await asyncio.sleep(0.1)
            (entry,) = tier.held.values()
            assert (entry.subject, entry.tags) == ("anna", frozenset(["north"]))
            assert cache.statistics().stale == 0
            with pytest.raises(TypeError):
                await wrapped(None, "anna")
            erasure = await cache.erase_everywhere(subject="anna")
            assert dict(erasure.counts) == {"memory": 2, "disk": 1}

    run(main)


def test_labels_choose_the_class():
    """A tag that names a data class bounds the age of the result."""

    async def main(loop):
        cache = si.EdgeCache(retention=Retention(100.0, classes={"face": Retention(5.0)}), clock=loop.clock)
        wrapped = cache.wrap(embed_later, tags=("site",))
        await wrapped(1, site="face")
        await wrapped(1, site="other")
        await asyncio.sleep(6.0)
        return len(cache)

    assert run(main) == 1


def test_other_labels_have_separate_entries():
    """Wrappings of a function with other label names share no entries, which lack the labels of the other."""
    cache = si.EdgeCache()
    plain, labeled = cache.wrap(embed), cache.wrap(embed, subject="patient")

    plain(1, "anna")
    labeled(1, "anna")

    assert plain.key_of(1, "anna") != labeled.key_of(1, "anna")
    assert cache.erase(subject="anna") == 1


def test_labels_of_a_method_and_collected_arguments():
    """Labels can name parameters of methods, and of functions that collect further arguments."""

    class Model:
        fingerprint = "model 1"

        def embed(self, image, *others, patient, **more):
            return image

    cache = si.EdgeCache()
    cache.wrap(Model().embed, subject="patient")(1, 2, patient="anna", zoom=3)

    assert cache.erase(subject="anna") == 1


@pytest.mark.parametrize("value", [7, b"anna", ["anna"]], ids=repr)
def test_subject_that_is_no_string_is_rejected(value):
    """A subject that is no string, which no erasure can name, is rejected before the function is called."""
    calls = []

    def model(x, patient):
        calls.append(x)

    with pytest.raises(InvalidInput, match="patient: expected a string or None, because it is the subject"):
        si.EdgeCache().wrap(model, subject="patient")(1, value)
    assert calls == []


def test_tags_that_are_no_strings_are_rejected():
    """Tags that are no strings are rejected."""
    with pytest.raises(InvalidInput, match="words: expected a string, several, or None"):
        si.EdgeCache().wrap(embed, tags=("words",))(1, words=[1])


def test_names_that_are_no_parameters_are_rejected():
    """A misspelt name is rejected when the function is wrapped."""
    with pytest.raises(ValueError, match="subject: expected a parameter's name, of image, patient, site, words"):
        si.EdgeCache().wrap(embed, subject="pateint")
    with pytest.raises(TypeError, match="tags: expected names of parameters, as in a tuple"):
        si.EdgeCache().wrap(embed, tags="site")


def test_names_for_a_service_are_rejected():
    """A service takes no label names, because requests have a subject and tags of their own."""
    with pytest.raises(TypeError, match="subject, tags: expected no names of parameters"):
        si.EdgeCache().wrap(Model(), subject="patient")
