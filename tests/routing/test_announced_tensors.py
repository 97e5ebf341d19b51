"""Routers announce the tensors of their services, and that a request has many responses."""

import numpy as np
import pytest

import streaminfer as si
from streaminfer.backends import TensorSpec
from streaminfer.protocols import ModelTensors, adapt

INPUT = TensorSpec("x", np.dtype(np.float32), (None, 4))
OUTPUT = TensorSpec("y", np.dtype(np.float32), (None, 2))


class Service:
    """Service with many responses per request, which announces its tensors."""

    many_answers = True

    def model_tensors(self):
        return ModelTensors([INPUT], [OUTPUT])

    async def call(self, request):
        return si.Response(request.inputs)


def announced(router):
    offered = adapt(si.Stack(router)).capabilities()
    tensors = offered.model_tensors()
    return offered.many_answers, tensors and (list(tensors.inputs), list(tensors.outputs))


@pytest.mark.parametrize(
    "router",
    [
        si.FallbackRouter(si.Route("best", Service()), si.Route("second", Service(), prepare=abs)),
        si.Replicas(si.Replica("a", Service()), si.Replica("b", Service())),
        si.routing.Canary(Service(), Service(), share=0.5),
    ],
    ids=["router", "replicas", "canary"],
)
def test_a_router_announces_what_its_services_do(router):
    """A stack around a router announces the tensors of its services, and that a request has many responses."""
    assert announced(router) == (True, ([INPUT], [OUTPUT]))


@pytest.mark.parametrize(
    ("adapters", "tensors"),
    [({"prepare": abs}, None), ({"finish": abs}, ([INPUT], []))],
    ids=["prepare", "finish"],
)
def test_a_router_announces_nothing_that_it_converts(adapters, tensors):
    """A router announces no tensors if its best route converts inputs, and no outputs if it converts outputs."""
    assert announced(si.FallbackRouter(si.Route("best", Service(), **adapters))) == (True, tensors)
