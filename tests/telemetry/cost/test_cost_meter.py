"""Cost meters around real stacks, in virtual time."""

import asyncio
import gc
import json
import threading
import weakref

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching import Buckets, ServiceTime
from streaminfer.protocols import Service
from streaminfer.request import Response
from streaminfer.streams import LatestOnly, StreamSession
from streaminfer.telemetry import CostMeter
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def check(statistics):
    """Check the sums that must hold exactly, and return the statistics."""
    for label, device in statistics.devices.items():
        assert device.busy_ns + device.padding_ns + device.idle_ns == device.bill_ns
        shares_ns = device.busy_ns - device.running_ns
        for rows in (statistics.models, statistics.routes, {"": statistics.total}):
            assert sum(row.cost_ns.get(label, 0) for row in rows.values()) == shares_ns
    assert statistics.bill == pytest.approx(statistics.busy + statistics.padding + statistics.idle)
    json.dumps(statistics.to_dict())
    statistics._repr_html_()
    return statistics


def one():
    return np.float32([1.0])


class TestShares:
    def test_a_batch_is_shared_by_its_requests(self):
        async def main(loop):
            meter = CostMeter(per_second=2.0)
            backend = ScriptedBackend(duration_s=0.1)
            async with si.Stack(meter, si.AdaptiveBatcher(max_batch_size=4), backend, clock=loop.clock) as stack:
                await asyncio.gather(*(stack(one(), tenant=tenant) for tenant in "aab"))
                await asyncio.sleep(0.3)
                assert stack.statistics()["CostMeter"].bill == pytest.approx(0.8)
                return meter.statistics()

        statistics = check(run(main))
        assert (statistics.busy, statistics.idle) == pytest.approx((0.2, 0.6))
        costs = {tenant: row.cost for tenant, row in statistics.tenants.items()}
        assert costs == pytest.approx({"a": 0.4 / 3, "b": 0.2 / 3})
        assert statistics.total.on_time == statistics.total.rows == 3
        assert statistics.per_1000_on_time == pytest.approx(0.8 / 3 * 1000)
        assert statistics.models["ScriptedBackend"].per_1000_on_time != statistics.per_1000_on_time

    def test_filling_rows_are_charged_as_padding(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            batcher = si.AdaptiveBatcher(
                max_batch_size=8, preferred_sizes=[1, 8], service_time=ServiceTime.affine(0.06, 0.005)
            )
            async with si.Stack(meter, batcher, ScriptedBackend(duration_s=0.1), clock=loop.clock) as stack:
                await asyncio.gather(*(stack(one()) for _ in range(2)))
                return meter.statistics()

        statistics = check(run(main))
        # of 0.1 s, 0.06 s are set-up; of the rest, six of eight rows are padding
        model = statistics.models["ScriptedBackend"]
        assert (model.setup, model.padding) == pytest.approx((0.06, 0.03), rel=1e-3)

    def test_set_up_is_learned_from_the_batches(self):
        """If no service time is given, the set-up of a batch is learned from the durations of the batches before."""

        async def main(loop):
            meter = CostMeter(per_second=1.0)
            backend = ScriptedBackend(duration_s=lambda rows: 0.06 + 0.005 * rows)
            async with si.Stack(meter, si.AdaptiveBatcher(max_batch_size=8), backend, clock=loop.clock) as stack:
                await stack(one())
                first = meter.statistics().models["ScriptedBackend"]
                for rows in (1, 2, 4, 8) * 80:
                    await asyncio.gather(*(stack(one()) for _ in range(rows)))
                before = meter.statistics().models["ScriptedBackend"]
                await asyncio.gather(*(stack(one()) for _ in range(4)))
                return first, before, meter.statistics()

        first, before, statistics = run(main)
        model = check(statistics).models["ScriptedBackend"]
        assert model.cost - before.cost == pytest.approx(0.08)
        assert model.setup - before.setup == pytest.approx(0.06, rel=0.1)
        assert (first.cost, first.setup) == (pytest.approx(0.065), 0.0)  # no set-up is known yet

    def test_rows_of_a_bucket_are_charged_by_their_length(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            batcher = si.AdaptiveBatcher(max_batch_size=4, buckets=Buckets([10], axis=0))
            async with si.Stack(meter, batcher, ScriptedBackend(duration_s=0.2), clock=loop.clock) as stack:
                await asyncio.gather(*(stack(np.zeros(n, np.float32), tenant=str(n)) for n in (2, 8)))
                return meter.statistics()

        statistics = check(run(main))
        assert statistics.padding == pytest.approx(0.1)
        costs = {tenant: row.cost for tenant, row in statistics.tenants.items()}
        assert costs == pytest.approx({"2": 0.02, "8": 0.08})

    def test_rows_are_charged_by_their_given_cost(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            batcher = si.AdaptiveBatcher(max_batch_size=4, row_cost=lambda x: float(x[0]), max_batch_cost=100.0)
            async with si.Stack(meter, batcher, ScriptedBackend(duration_s=0.1), clock=loop.clock) as stack:
                await asyncio.gather(*(stack(np.float32([cost]), stream_id=cost) for cost in (1, 3)))
                return meter.statistics()

        statistics = check(run(main))
        assert {stream: row.cost for stream, row in statistics.streams.items()} == pytest.approx(
            {"1": 0.025, "3": 0.075}
        )


class TestOutcomes:
    def test_failed_and_split_batches_cost_what_they_took(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            backend = ScriptedBackend(ValueError("all"), ValueError("half"), duration_s=0.1)
            async with si.Stack(meter, si.AdaptiveBatcher(max_batch_size=4), backend, clock=loop.clock) as stack:
                results = await asyncio.gather(*(stack(one()) for _ in range(4)), return_exceptions=True)
                assert len(backend.batches) > 2
                return meter.statistics(), len(backend.batches), results

        statistics, batches, results = run(main)
        assert check(statistics).busy == pytest.approx(0.1 * batches)
        assert statistics.total.rows == 4
        assert statistics.failed == sum(isinstance(result, Exception) for result in results)

    def test_a_cancelled_row_is_charged_too(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            async with si.Stack(
                meter, si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.1), clock=loop.clock
            ) as stack:
                calls = [asyncio.ensure_future(stack(one(), tenant=tenant)) for tenant in "ab"]
                await asyncio.sleep(0.05)
                calls[0].cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                return meter.statistics()

        statistics = check(run(main))
        assert [row.cost for row in statistics.tenants.values()] == pytest.approx([0.05, 0.05])
        assert (statistics.failed, statistics.total.responses) == (1, 1)

    def test_abandoned_batch_is_charged_until_it_ends(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            async with si.Stack(
                meter, si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(HANG), clock=loop.clock
            ) as stack:
                with pytest.raises(si.DeadlineExceeded):
                    await stack(one(), timeout_s=0.25)
                await asyncio.sleep(0.75)
                return meter.statistics()

        statistics = check(run(main))
        assert (statistics.busy, statistics.idle) == pytest.approx((0.25, 0.75), abs=1e-3)

    def test_late_and_degraded_responses(self):
        async def main(loop):
            meter = CostMeter(per_second={"large": 1.0, "small": 0.1})
            large = si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(ValueError("down"), duration_s=0.2))
            small = si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(duration_s=0.1))
            router = si.FallbackRouter(si.Route("large", large), si.Route("small", small, quality=0.5))
            async with si.Stack(meter, router, clock=loop.clock) as stack:
                await stack(one())
                await stack(one())
                return meter.statistics()

        statistics = check(run(main))
        small, large = statistics.routes["small"], statistics.routes["large"]
        assert (small.degraded, small.responses, large.responses) == (1, 1, 1)
        assert (small.cost, large.cost) == pytest.approx((0.01, 0.4))
        assert statistics.devices["small"].idle_ns == pytest.approx(0.4e9)

    def test_savings_of_the_cache(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            backend = ScriptedBackend(duration_s=0.1)
            layers = (meter, si.EdgeCache(maxsize=9), si.AdaptiveBatcher(max_batch_size=4), backend)
            async with si.Stack(*layers, clock=loop.clock) as stack:
                await asyncio.gather(*(stack(one()) for _ in range(3)))
                await stack(one())
                return meter.statistics()

        statistics = check(run(main))
        assert (statistics.total.cached, statistics.total.rows) == (3, 1)
        assert statistics.saved_by_cache == pytest.approx(0.3)
        assert statistics.routes["cache"].responses == 1


class TestPlaces:
    def test_models_of_one_class_have_rows_by_name(self):
        """Models of one class have a row each, by their names."""

        async def main(loop):
            meter = CostMeter(per_second=1.0)
            models = [ScriptedBackend(ValueError("down"), duration_s=0.2), ScriptedBackend(duration_s=0.1)]
            models[0].name, models[1].name = "faces", "words"
            stacks = (si.Stack(si.AdaptiveBatcher(max_batch_size=1), model) for model in models)
            router = si.FallbackRouter(*(si.Route(name, stack) for name, stack in zip("ab", stacks, strict=True)))
            async with si.Stack(meter, router, clock=loop.clock) as stack:
                await stack(one())
                return meter.statistics()

        costs = {name: row.cost for name, row in check(run(main)).models.items()}
        assert costs == pytest.approx({"faces": 0.2, "words": 0.1})

    def test_responses_are_counted_per_model(self):
        """A model has the responses that name it or its own route, and none of a route that several models share."""

        def named(name, *script):
            model = ScriptedBackend(*script, duration_s=0.1)
            model.name = name
            return si.Stack(si.AdaptiveBatcher(max_batch_size=1), model)

        def two(one, other):
            return si.Replicas(si.Replica("x", named(one)), si.Replica("y", named(other)))

        async def models(loop, *layers):
            meter = CostMeter(per_second=1.0)
            async with si.Stack(meter, *layers, clock=loop.clock) as stack:
                for _ in range(2):
                    await stack(one())
            rows = check(meter.statistics()).models.items()
            return {name: (row.rows, row.responses, row.degraded, row.per_1000_on_time) for name, row in rows}

        async def main(loop):
            large, small = named("large", ValueError("down")), named("small")
            router = si.FallbackRouter(si.Route("a", large), si.Route("b", small, quality=0.5))
            shared = si.FallbackRouter(
                si.Route("a", named("large", *[ValueError("down")] * 2)), si.Route("b", two("new", "old"))
            )
            cached = (si.EdgeCache(maxsize=9), named("faces"))
            return [await models(loop, *layers) for layers in ((router,), cached, (two("same", "same"),), (shared,))]

        routes, cached, replicas, shared = run(main)
        assert routes == {"large": (2, 1, 0, pytest.approx(200)), "small": (1, 1, 1, pytest.approx(100))}
        assert cached == {"faces": (1, 1, 0, pytest.approx(100))}
        assert replicas == {"same": (2, 2, 0, pytest.approx(100))}
        assert sum(shared[name][0] for name in ("new", "old")) == 2
        assert [shared[name][1] for name in ("new", "old")] == [0, 0]

    def test_replicas_on_one_bill(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0, workers=2)
            replicas = si.Replicas(
                *(
                    si.Replica(name, si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(duration_s=0.1)))
                    for name in "ab"
                )
            )
            async with si.Stack(meter, replicas, clock=loop.clock) as stack:
                await asyncio.gather(*(stack(one()) for _ in range(4)))
                return meter.statistics()

        statistics = check(run(main))
        assert statistics.busy == pytest.approx(statistics.bill, rel=1e-3)
        assert {"a", "b"} <= set(statistics.routes)

    def test_replica_of_a_hedge_has_one_row(self):
        """The row of a hedge's replica has its cost and its responses, and the price of its own device."""

        async def main(loop):
            meter = CostMeter(per_second={"first": 1.0, "hedge": 0.1})
            first, second = ScriptedBackend(duration_s=0.010), ScriptedBackend(duration_s=0.020)
            first.name = second.name = "first"
            hedge = si.Hedge(max_extra=1.0, to=si.Stack(si.AdaptiveBatcher(max_batch_size=1), second))
            async with si.Stack(meter, hedge, si.AdaptiveBatcher(max_batch_size=1), first, clock=loop.clock) as stack:
                for _ in range(40):
                    await stack(one())
                first._steps.append(HANG)
                await stack(one())
                return meter.statistics()

        routes = check(run(main)).routes
        assert {name: row.responses for name, row in routes.items()} == {"first": 40, "hedge": 1}
        assert routes["hedge"].cost == pytest.approx(0.002)

    def test_hedge_without_batcher_is_not_a_cache(self):
        """A hedge's replica without a batcher is not taken for a cache: its responses do not count as cached."""

        class Remote(Service):
            async def call(self, request):
                return Response(request.inputs)

        async def main(loop):
            meter = CostMeter(per_second=1.0)
            model = ScriptedBackend(duration_s=0.010)
            hedge = si.Hedge(max_extra=1.0, to=Remote())
            async with si.Stack(meter, hedge, si.AdaptiveBatcher(max_batch_size=1), model, clock=loop.clock) as stack:
                for _ in range(40):
                    await stack(one())
                model._steps.append(HANG)
                await stack(one())
                return meter.statistics()

        statistics = check(run(main))
        assert (statistics.routes["hedge"].responses, statistics.total.cached) == (1, 0)

    def test_service_without_batcher_is_charged_per_call(self):
        """A service without a batcher is charged per call."""

        class Own(Service):
            async def call(self, request):
                await asyncio.sleep(0.1)
                return Response(request.inputs)

        async def main(loop):
            meter = CostMeter(per_second=1.0, name="own")
            async with si.Stack(meter, Own(), clock=loop.clock) as stack:
                await stack(one(), tenant="a")
                assert "<td>0.1</td>" in meter._repr_html_()
                return meter.statistics()

        statistics = check(run(main))
        assert statistics.models["Own"].cost == statistics.tenants["a"].cost == pytest.approx(0.1)
        assert statistics.total.cached == 0
        assert repr(statistics).startswith("<CostStatistics 'own': 0.1 USD, of which busy 0.1, padding 0, idle 0;")

    def test_replicas_added_at_run_time_share_a_row(self):
        models = []

        def replica(name):
            backend = ScriptedBackend(duration_s=0.1)
            models.append(weakref.ref(backend))
            return si.Replica(name, si.Stack(si.AdaptiveBatcher(max_batch_size=1), backend))

        async def main(loop):
            meter = CostMeter(per_second=1.0, workers=2, max_label_sets=3)
            replicas = si.Replicas(replica("0"), slow_start_s=0.0)
            async with si.Stack(meter, replicas, clock=loop.clock) as stack:
                for number in range(1, 6):
                    await replicas.add(replica(str(number)))
                    await asyncio.gather(*(stack(one()) for _ in range(6)))
                    await replicas.remove(str(number - 1))
                gc.collect()
                return meter.statistics(), sum(model() is not None for model in models)

        statistics, alive = run(main)
        assert check(statistics).total.rows == statistics.total.responses == 30
        assert set(statistics.routes) == {"0", "1", "2", "other"}
        assert alive <= 2  # `Replicas` keeps the last replica that was removed, and the meter keeps none

    def test_models_of_ever_new_replicas_share_a_row(self):
        def replica(name):
            backend = ScriptedBackend(duration_s=0.1)
            backend.name = f"faces at {name}"
            return si.Replica(name, si.Stack(si.AdaptiveBatcher(max_batch_size=1), backend))

        async def main(loop):
            meter = CostMeter(per_second=1.0, max_label_sets=3)
            replicas = si.Replicas(replica("0"), slow_start_s=0.0)
            async with si.Stack(meter, replicas, clock=loop.clock) as stack:
                for number in range(1, 20):
                    await replicas.add(replica(str(number)))
                    await replicas.remove(str(number - 1))
                    await stack(one())
                return meter.statistics(), [len(device.models) for device in meter.devices.values()]

        statistics, accounts = run(main)
        rows = {model: row.rows for model, row in check(statistics).models.items()}
        assert rows == {"faces at 0": 0, "faces at 1": 1, "faces at 2": 1, "other": 17}
        assert accounts == [4]
        assert statistics.overflowed == 3 * 17  # as a model, as a route, and the responses of routes

    def test_model_beyond_bound_is_in_row_of_its_route(self):
        """The cost of a model beyond the bound is in the row of its route."""

        def replica(name, model):
            backend = ScriptedBackend(duration_s=0.1)
            backend.name = model
            return si.Replica(name, si.Stack(si.AdaptiveBatcher(max_batch_size=1), backend))

        async def main(loop):
            meter = CostMeter(per_second=1.0, max_label_sets=2)
            replicas = si.Replicas(replica("a", "version 1"), replica("b", "version 1"), slow_start_s=0.0)
            async with si.Stack(meter, replicas, clock=loop.clock) as stack:
                for version in range(2, 6):
                    await replicas.remove("a")
                    await replicas.add(replica("a", f"version {version}"))
                await replicas.remove("b")
                await stack(one())
                return meter.statistics()

        statistics = check(run(main))
        assert {model: row.rows for model, row in statistics.models.items()} == {
            "version 1": 0,
            "version 2": 0,
            "other": 1,
        }
        assert (statistics.routes["a"].rows, statistics.routes["a"].responses, statistics.overflowed) == (1, 1, 1)

    def test_a_replica_without_a_price_is_added_and_logged(self, caplog):
        def replica(name, service):
            return si.Replica(name, si.Stack(si.AdaptiveBatcher(max_batch_size=1), service))

        class Other(ScriptedBackend):
            pass

        async def main(loop):
            meter = CostMeter(per_second={"ScriptedBackend": 1.0})
            replicas = si.Replicas(replica("a", ScriptedBackend(duration_s=0.1)))
            async with si.Stack(meter, replicas, clock=loop.clock) as stack:
                await replicas.add(replica("b", Other(duration_s=0.1)))
                await asyncio.gather(*(stack(one()) for _ in range(9)))
                return meter.statistics()

        assert check(run(main)).total.responses == 9
        assert "the new replica 'b'" in caplog.text

    def test_streams_of_a_session_are_charged(self):
        async def camera(frames, gap_s):
            for number in range(frames):
                await asyncio.sleep(gap_s)
                yield np.float32([number])

        async def main(loop):
            meter = CostMeter(per_second=1.0)
            layers = (meter, si.AdaptiveBatcher(max_batch_size=8), ScriptedBackend(duration_s=0.01))
            async with si.Stack(*layers, clock=loop.clock) as stack:
                session = StreamSession(stack, tenant="gold", policy=LatestOnly(), max_in_flight=2)
                for frames, gap_s, stream_id in ((30, 0.02, "door"), (10, 0.03, "yard"), (40, 0.001, None)):
                    session.add(camera(frames, gap_s), stream_id=stream_id)
                results = [result.stream_id async for result in session]
                return meter.statistics(), results

        statistics, results = run(main)
        check(statistics)
        got = {stream: row.responses for stream, row in statistics.streams.items()}
        assert got == {stream: results.count(stream) for stream in set(results)}
        assert got["door"] == 30
        assert sum(row.cost_ns["device"] for row in statistics.streams.values()) == statistics.devices["device"].busy_ns
        assert statistics.tenants["gold"].cost_ns == statistics.total.cost_ns

    def test_route_without_batcher_is_not_a_cache(self, caplog):
        """A route without a batcher is not taken for a cache: its responses do not count as cached."""

        class Remote(Service):
            async def call(self, request):
                await asyncio.sleep(0.1)
                return Response(request.inputs)

        async def main(loop):
            meter = CostMeter(per_second=1.0)
            large = si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(ValueError("down"), duration_s=0.1))
            router = si.FallbackRouter(si.Route("large", large), si.Route("small", Remote(), quality=0.5))
            async with si.Stack(meter, router, clock=loop.clock) as stack:
                await stack(one())
                await stack(one())
                return meter.statistics()

        statistics = check(run(main))
        assert (statistics.routes["small"].responses, statistics.total.cached) == (1, 0)
        assert "'small' has no batcher, so that calls of 'Remote' cost nothing" in caplog.text

    @pytest.mark.parametrize("name", ["Stack", "Stack of GPUs"])
    def test_a_route_called_as_its_class(self, name):
        """The name of a route is its label, whatever class of service it leads to."""

        async def main(loop):
            meter = CostMeter(per_second={name: 1.0, "small": 0.1})
            services = [si.Stack(ScriptedBackend(duration_s=0.1)) for _ in range(2)]
            router = si.FallbackRouter(si.Route(name, services[0]), si.Route("small", services[1], quality=0.5))
            async with si.Stack(meter, router, clock=loop.clock) as stack:
                await stack(one())
                return meter.statistics()

        statistics = check(run(main))
        assert statistics.routes[name].cost == pytest.approx(0.1)

    def test_one_meter_with_and_without_batcher(self):
        """One meter around a batcher and around a service without one counts no response as cached."""

        class Own(Service):
            async def call(self, request):
                await asyncio.sleep(0.1)
                return Response(request.inputs, False, "own")

        async def main(loop):
            meter = CostMeter(per_second=1.0)
            batched = si.Stack(meter, ScriptedBackend(duration_s=0.1), clock=loop.clock)
            async with batched as first, si.Stack(meter, Own(), clock=loop.clock) as second:
                await first(one())
                await second(one())
                return meter.statistics()

        statistics = check(run(main))
        assert (statistics.total.cached, statistics.total.rows) == (0, 2)

    def test_backend_without_a_batcher_is_charged(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0)
            async with si.Stack(meter, ScriptedBackend(duration_s=0.1), clock=loop.clock) as stack:
                await asyncio.gather(stack(one()), stack(one()))
                return meter.statistics()

        statistics = check(run(main))
        assert (statistics.busy, statistics.total.rows) == (pytest.approx(0.1), 2)

    def test_batches_that_a_closed_loop_left_behind_end(self):
        batcher = si.AdaptiveBatcher(max_batch_size=2)
        predict = batcher.wrap(ScriptedBackend(HANG).infer)
        clock = FakeClock()
        meter = CostMeter(per_second=1.0, clock=clock)
        batcher.bind_clock(clock)
        assert meter.watch(batcher) == meter.watch(batcher) == 1

        left = []

        async def leave():
            left.append(asyncio.ensure_future(predict(1.0)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
        loop.close()
        clock.advance(1.0)
        other = asyncio.new_event_loop()
        other.run_until_complete(batcher.stop())
        other.close()
        assert check(meter.statistics()).devices["device"].running_ns == 0

    def test_one_meter_in_several_threads(self):
        meter = CostMeter(per_second=1.0, workers=4)

        def serve():
            async def main():
                backend = si.CpuBackend(lambda x: x, executor="inline")
                async with si.Stack(meter, si.AdaptiveBatcher(max_batch_size=4), backend) as stack:
                    for _ in range(50):
                        await asyncio.gather(*(stack(one(), tenant=str(n)) for n in range(5)))

            asyncio.run(main())

        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            device = meter.statistics().devices["device"]
            assert device.busy_ns + device.padding_ns + device.idle_ns == device.bill_ns
        for thread in threads:
            thread.join()
        statistics = check(meter.statistics())
        assert statistics.total.rows == statistics.total.responses == 1000
        assert sum(row.cost_ns["device"] for row in statistics.tenants.values()) == statistics.devices["device"].busy_ns

    def test_tenants_beyond_the_bound_share_a_row(self):
        async def main(loop):
            meter = CostMeter(per_second=1.0, max_label_sets=2)
            async with si.Stack(meter, ScriptedBackend(duration_s=0.1), clock=loop.clock) as stack:
                for number in range(5):
                    await stack(one(), tenant=str(number))
                return meter.statistics()

        statistics = check(run(main))
        assert {tenant: row.responses for tenant, row in statistics.tenants.items()} == {"0": 1, "1": 1, "other": 3}
        assert statistics.overflowed == 6

    def test_tenant_has_one_row_for_cost_and_responses(self):
        """The cost and the responses of a tenant are in one row, whichever of them is counted first."""

        async def main(loop):
            meter = CostMeter(per_second={"a": 1.0, "b": 1.0}, max_label_sets=2)
            router = si.FallbackRouter(
                si.Route("a", [ScriptedBackend(OSError("down"), OSError("down"), OSError("down"), duration_s=0.1)]),
                si.Route("b", [ScriptedBackend(OSError("down"), duration_s=0.1)], quality=0.5),
            )
            async with si.Stack(meter, router, clock=loop.clock) as stack:
                for tenant in ("charged", "both", "late"):  # only the first tenant's batches fail on both devices
                    await asyncio.gather(stack(one(), tenant=tenant), return_exceptions=True)
                return meter.statistics()

        statistics = run(main)
        rows = {tenant: (row.cost_ns, row.responses) for tenant, row in check(statistics).tenants.items()}
        each = {"a": 10**8, "b": 10**8}
        assert rows == {"charged": (each, 0), "both": (each, 1), "other": (each, 1)}
        assert statistics.overflowed == 3

    def test_route_beyond_bound_has_one_row(self):
        """The cost and the responses of a route beyond the bound are in one row."""

        async def main(loop):
            meter = CostMeter(per_second=1.0, max_label_sets=2)
            router = si.FallbackRouter(
                *(si.Route(name, [ScriptedBackend(OSError("down"), duration_s=0.1)]) for name in ("a", "b")),
                si.Route("c", [ScriptedBackend(duration_s=0.1)], quality=0.5),
            )
            async with si.Stack(meter, router, clock=loop.clock) as stack:
                await stack(one())
                return meter.statistics()

        statistics = run(main)
        assert {route: (row.rows, row.responses) for route, row in check(statistics).routes.items()} == {
            "a": (1, 0),
            "b": (1, 0),
            "other": (1, 1),
        }
        assert statistics.overflowed == 2

    def test_route_with_several_reasons_takes_one_row(self):
        """A route that is chosen for several reasons takes one row."""

        async def main(loop):
            meter = CostMeter(per_second=1.0, max_label_sets=2)
            limit = si.ConcurrencyLimit(limit=1)
            large = [limit, ScriptedBackend(OSError("down"), duration_s=0.1)]
            router = si.FallbackRouter(
                si.Route("large", large, device="a"), si.Route("small", [ScriptedBackend()], quality=0.5, device="b")
            )
            async with si.Stack(meter, router, clock=loop.clock) as stack:
                await stack(one())  # large: failed
                await stack(one())
                permit = limit.try_acquire()
                await stack(one())  # large: limit
                limit.release(permit)
                return meter.statistics(), router.statistics().reasons

        statistics, reasons = run(main)
        assert reasons == {"failed": 1, "limit": 1}
        assert {route: row.responses for route, row in check(statistics).routes.items()} == {"large": 1, "small": 2}
        assert statistics.overflowed == 0


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"per_second": 0}, ValueError, "per_second: expected a finite price > 0, got 0"),
            ({"per_second": "1"}, TypeError, "per_second: expected a finite price > 0"),
            ({"per_second": {}}, ValueError, "per_second: expected the price of at least one model or route"),
            ({"per_second": 1, "workers": 0}, ValueError, "workers: expected a whole number"),
            ({"per_second": 1, "workers": 2**70}, ValueError, "workers: expected a whole number ≥ 1 and ≤"),
            (
                {"per_second": 1, "max_label_sets": 2**70},
                ValueError,
                "max_label_sets: expected a whole number ≥ 1 and ≤",
            ),
            ({"per_second": 1, "currency": 3}, TypeError, "currency: expected a string"),
            ({"per_second": 1, "clock": 3}, TypeError, "clock: expected a callable or None"),
        ],
    )
    def test_invalid_prices_raise(self, arguments, error, text):
        with pytest.raises(error, match=text):
            CostMeter(**arguments)

    def test_model_without_a_price_is_an_error(self):
        meter = CostMeter(per_second={"large": 1.0})
        with pytest.raises(ValueError, match="a price for the model 'ScriptedBackend' or its route ''"):
            meter.wrap(si.Stack(ScriptedBackend()))

    def test_backend_cannot_be_wrapped(self):
        with pytest.raises(TypeError, match="inner: expected a service"):
            CostMeter(per_second=1.0).wrap(ScriptedBackend())
