"""Unique names for objects of the same name."""

from streaminfer._internal.display.unique_name import unique_name


def test_unused_name_is_unchanged():
    assert unique_name("a", {"b"}) == "a"


def test_taken_name_gets_the_next_free_number():
    """A name that is taken gets the next free number."""
    assert unique_name("a", {"a"}) == "a#2"
    assert unique_name("a", {"a", "a#2", "a#4"}) == "a#3"
