"""HTTP dates (RFC 9110 §5.6.7): written in the one form for senders, and read in all three forms.

Instants are seconds since 1970 in UTC. Names of days and months are English in every locale.
"""

import functools
import re
from datetime import UTC, datetime
from email.utils import formatdate

__all__ = ["http_date", "parse_http_date"]

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_SHORT_DAY = "|".join(day[:3] for day in _DAYS)
_MONTH = "(?P<month>" + "|".join(_MONTHS) + ")"
_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = (
    re.compile(rf"(?P<name>{_SHORT_DAY}), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} GMT"),
    re.compile(rf"(?P<name>{'|'.join(_DAYS)}), (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_CLOCK} GMT"),
    re.compile(rf"(?P<name>{_SHORT_DAY}) {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_CLOCK} (?P<year>[0-9]{{4}})"),
)


@functools.lru_cache(maxsize=64)
def http_date(second: int) -> str:
    """Return an instant as ``Sun, 06 Nov 1994 08:49:37 GMT``.

    Args:
        second: whole seconds since 1970, UTC.

    Raises:
        ValueError, OverflowError, OSError: not within the years 1 to 9999.
    """
    return formatdate(second, usegmt=True)


def parse_http_date(text: str, now_s: int) -> int | None:
    """Return the instant of a date in whole seconds since 1970; ``None`` if the text is not an HTTP date.

    Args:
        text: value of the field.
        now_s: the current time, for years with two digits: a date more than 50 years ahead counts as past.
    """
    match = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    if match is None:
        return None
    year, month = int(match["year"]), _MONTHS.index(match["month"]) + 1
    day, hour, minute, second = (int(match[part]) for part in ("day", "hour", "minute", "second"))
    leap = second == 60  # clocks without leap seconds show the second after
    second -= leap
    try:
        if len(match["year"]) == 2:
            present = datetime.fromtimestamp(now_s, UTC)
            year += present.year - present.year % 100
            if (year - 50, month, day, hour, minute, second) > present.timetuple()[:6]:
                year -= 100
        at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return int(at.timestamp()) + leap if _DAYS[at.weekday()].startswith(match["name"]) else None
