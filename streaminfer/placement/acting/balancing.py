"""`plan_replicas`: `Replicas` for one cluster of users, with the shares of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from streaminfer._internal.validation import check_choice, check_instance, check_number, expected
from streaminfer.placement.acting.traffic import site_shares
from streaminfer.placement.plan_record import Plan
from streaminfer.routing.replicas.replica import Replica
from streaminfer.routing.replicas.replica_set import Replicas

__all__ = ["plan_replicas"]

_PLANNED_PENALTY = 1.01
"""Penalty of the other planned sites: weights set their shares, and their latency includes the round trip."""


def plan_replicas(
    plan: Plan,
    cluster: str,
    services: Mapping[str, Any | Sequence[Any]],
    *,
    hour: int | None = None,
    spill_penalty: float = 4.0,
    **options: Any,
) -> Replicas:
    """Return the `Replicas` of one cluster of users.

    The zone of the cluster is the site with most of its requests. Other planned sites get requests by weight and load.
    Sites that the plan does not use for this cluster get requests only if they are expected to respond much sooner.

    Args:
        plan: the plan.
        cluster: the name of the users' cluster.
        services: name of a site → a service or a list of services, such as stacks around the backends there.
        hour: an hour of the plan; ``None``: the busiest hour that serves the cluster.
        spill_penalty: factor, above 1, by which a site that is not planned must be expected to respond sooner.
        options: options of `Replicas`.

    Raises:
        TypeError, ValueError: the plan does not serve the cluster, or a site that it uses has no service.
    """
    check_instance("services", services, Mapping, "a mapping of site to services")
    shares = site_shares(plan, hour=hour)
    name = check_choice("cluster", cluster, tuple(shares))
    spill_penalty = check_number("spill_penalty", spill_penalty, "a number above 1", lambda it: it > 1)
    planned = {site: share for site, share in shares[name].items() if share > 0}
    if missing := [site for site in planned if not _services(services.get(site, ()))]:
        raise ValueError(expected("services", f"a service at {missing[0]!r}, which the plan uses", list(services)))
    home = max(planned, key=planned.__getitem__)
    members = []
    for site, entry in services.items():
        at_site = _services(entry)
        # if the planned sites are slow, another site gets as many requests as an average one of them
        weight = planned.get(site, 1.0 / len(planned)) / max(len(at_site), 1)
        for number, service in enumerate(at_site, 1):
            members.append(Replica(f"{site} {number}", service, zone=site, weight=weight))
    penalties = {site: _PLANNED_PENALTY if site in planned else spill_penalty for site in services if site != home}
    return Replicas(*members, zone=home, zone_penalty=penalties or spill_penalty, **options)


def _services(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)
