"""TritonBackend against MLServer, which speaks the protocol without Triton's extensions."""

import asyncio

import numpy as np
import pytest
from servers.mlp import mlp_answers

import streaminfer as si
from streaminfer.backends.triton import TritonBackend


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def url(mlserver, protocol):
    return mlserver.grpc_url if protocol == "grpc" else mlserver.http_url


def rows(count):
    return np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)


def test_plain_inference_works(url, protocol):
    async def main():
        backend = TritonBackend(url, "mlp", protocol=protocol)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend) as service:
            answers = await asyncio.gather(*map(service, rows(20)))
            np.testing.assert_allclose(answers, mlp_answers(rows(20)), 1e-4, 1e-5)
            assert backend.statistics().errors == 0

    asyncio.run(main())


def test_integers_are_exact(url, protocol):
    wanted = np.array([2**62 + 1, -(2**62) - 1, 0], np.int64)

    async def main():
        async with si.Stack(TritonBackend(url, "echo", protocol=protocol)) as service:
            answer = await service(wanted)
            assert answer.dtype == np.int64
            assert answer.tolist() == wanted.tolist()

    asyncio.run(main())


def test_what_the_server_lacks_is_found_at_the_start_and_said(url, protocol):
    async def main():
        backend = TritonBackend(url, "mlp", protocol=protocol)
        async with si.Stack(backend):
            assert backend.server.name == "mlserver"
            assert backend.queued_workers is None  # it does not say how many work
            lacks = set(backend.missing_extensions)
            assert {"statistics", "system_shared_memory", "model_configuration"} <= lacks
            assert ("binary_tensor_data" in lacks) or protocol == "grpc"

    asyncio.run(main())


def test_shared_memory_is_refused_at_the_start(url, protocol):
    async def main():
        with pytest.raises(ValueError, match=r"shared_memory.*mlserver"):
            await TritonBackend(url, "mlp", protocol=protocol, shared_memory=True).start()

    asyncio.run(main())


def test_a_model_that_it_does_not_have_is_refused_at_the_start(url, protocol):
    async def main():
        with pytest.raises((ValueError, si.BackendError), match="tpu"):
            await TritonBackend(url, "tpu", protocol=protocol).start()

    asyncio.run(main())


def test_what_does_not_fit_is_refused_before_it_is_sent(url, protocol):
    async def main():
        async with si.Stack(TritonBackend(url, "mlp", protocol=protocol)) as service:
            with pytest.raises(si.InvalidInput, match="x"):
                await service(np.zeros(7, np.float32))

    asyncio.run(main())
