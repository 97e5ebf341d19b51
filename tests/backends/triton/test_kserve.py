"""TritonBackend against KServe's Python server, which knows no versions and none of Triton's extensions."""

import asyncio

import numpy as np
import pytest
from servers.mlp import mlp_answers

import streaminfer as si
from streaminfer.backends.triton import TritonBackend


@pytest.fixture(params=["grpc", "http"])
def connect(kserve, request):
    url = kserve.grpc_url if request.param == "grpc" else kserve.http_url
    return lambda model="mlp", **more: TritonBackend(url, model, protocol=request.param, **more)


def rows(count):
    return np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)


def test_plain_inference_works(connect):
    async def main():
        backend = connect()
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend) as service:
            answers = await asyncio.gather(*map(service, rows(20)))
            np.testing.assert_allclose(answers, mlp_answers(rows(20)), 1e-4, 1e-5)
            assert backend.statistics().errors == 0
            assert backend.description.version == ""  # the server names none
            assert "model_configuration" in backend.missing_extensions

    asyncio.run(main())


def test_fingerprint_without_version_is_unique(connect):
    """The fingerprint of a backend without a version is unique.

    The version that responds is unknown, so a cache must not use the stored responses of another process.
    """

    async def main():
        one, other = connect(), connect()
        async with si.Stack(one), si.Stack(other):
            assert one.fingerprint != other.fingerprint

    asyncio.run(main())


def test_missing_features_are_an_error_at_start(connect):
    async def main():
        with pytest.raises(ValueError, match="shared_memory"):
            await connect(shared_memory=True).start()
        with pytest.raises((ValueError, si.BackendError), match="tpu"):
            await connect("tpu").start()

    asyncio.run(main())


def test_mismatched_request_is_rejected_before_sending(connect):
    """A request that does not match the model is rejected before it is sent."""

    async def main():
        async with si.Stack(connect()) as service:
            with pytest.raises(si.InvalidInput, match="x"):
                await service(np.zeros(7, np.float32))

    asyncio.run(main())
