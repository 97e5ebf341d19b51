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


def test_missing_extensions_are_found_at_start(url, protocol):
    """Extensions that the server lacks are found at the start and listed in `missing_extensions`."""

    async def main():
        backend = TritonBackend(url, "mlp", protocol=protocol)
        async with si.Stack(backend):
            assert backend.server.name == "mlserver"
            assert backend.queued_workers is None  # the server does not report how many it has
            lacks = set(backend.missing_extensions)
            assert {"statistics", "system_shared_memory", "model_configuration"} <= lacks
            assert ("binary_tensor_data" in lacks) or protocol == "grpc"

    asyncio.run(main())


def test_shared_memory_is_rejected_at_start(url, protocol):
    async def main():
        with pytest.raises(ValueError, match=r"shared_memory.*mlserver"):
            await TritonBackend(url, "mlp", protocol=protocol, shared_memory=True).start()

    asyncio.run(main())


def test_unknown_model_is_rejected_at_start(url, protocol):
    """A model that the server does not have is rejected at the start."""

    async def main():
        with pytest.raises((ValueError, si.BackendError), match="tpu"):
            await TritonBackend(url, "tpu", protocol=protocol).start()

    asyncio.run(main())


def test_mismatched_request_is_rejected_before_sending(url, protocol):
    """A request that does not match the model is rejected before it is sent."""

    async def main():
        async with si.Stack(TritonBackend(url, "mlp", protocol=protocol)) as service:
            with pytest.raises(si.InvalidInput, match="x"):
                await service(np.zeros(7, np.float32))

    asyncio.run(main())
