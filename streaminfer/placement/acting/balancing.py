"""`Replicas` of one cluster of users, by the shares of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from streaminfer._internal.validation import check_number, expected
from streaminfer.routing.replicas.replica import Replica
from streaminfer.routing.replicas.replica_set import Replicas

__all__ = ["balanced_replicas"]

_PLANNED_PENALTY = 1.01
"""Of another site that the plan uses as well: weights say how much it gets, and its round trip is in its latency."""


def balanced_replicas(
    shares: Mapping[str, float], services: Mapping[str, Any], *, spill_penalty: float, **options: Any
) -> Replicas:
    """Return replicas with the weights and zones of a plan.

    Args:
        shares: of the cluster's requests, by site.
        services: by site, a service or several.
        spill_penalty: as of `Plan.replicas`.
        options: of `Replicas`.

    Raises:
        TypeError, ValueError: a planned site has no service, or an argument that does not fit.
    """
    check_number("spill_penalty", spill_penalty, "a number above 1", lambda it: it > 1)
    planned = {site: share for site, share in shares.items() if share > 0}
    if missing := [site for site in planned if not _services(services.get(site, ()))]:
        raise ValueError(expected("services", f"a service at {missing[0]!r}, which the plan uses", list(services)))
    home = max(planned, key=planned.__getitem__)
    members = []
    for site, given in services.items():
        at_site = _services(given)
        # elsewhere requests go if the planned sites are slow, as many as to an average one of them
        weight = planned.get(site, 1.0 / len(planned)) / max(len(at_site), 1)
        for number, service in enumerate(at_site, 1):
            members.append(Replica(f"{site} {number}", service, zone=site, weight=weight))
    penalties = {site: _PLANNED_PENALTY if site in planned else spill_penalty for site in services if site != home}
    return Replicas(*members, zone=home, zone_penalty=penalties or spill_penalty, **options)


def _services(given: Any) -> Sequence[Any]:
    return given if isinstance(given, (list, tuple)) else (given,)
