import asyncio

import pytest

from stasc_ray.serving.doors import Admission
from stasc_ray.serving.errors import ApiError


def test_what_fits_is_let_in_what_waits_is_bounded_and_the_rest_gets_429():
    async def scenario():
        admission, release = Admission(2, 3), asyncio.Event()

        async def question() -> int:
            try:
                async with admission.place():
                    assert admission.in_flight <= 2
                    await release.wait()
                    return 200
            except ApiError as error:
                assert int(error.headers["Retry-After"]) >= 1
                return error.status

        tasks = [asyncio.create_task(question()) for _ in range(10)]
        await asyncio.sleep(0)
        assert (admission.in_flight, admission.queued) == (2, 3)
        release.set()
        found = await asyncio.gather(*tasks)
        assert (admission.in_flight, admission.queued) == (0, 0)
        return found

    assert sorted(asyncio.run(scenario())) == [200] * 5 + [429] * 5


@pytest.mark.parametrize("stage", ["waiting", "working"])
def test_who_goes_away_frees_the_place(stage):
    async def scenario():
        admission = Admission(1, 1)

        async def question() -> None:
            async with admission.place():
                await asyncio.sleep(3600)

        first = asyncio.create_task(question())
        second = asyncio.create_task(question())
        await asyncio.sleep(0)
        gone = second if stage == "waiting" else first
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await asyncio.sleep(0)
        found = (admission.in_flight, admission.queued)
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert (admission.in_flight, admission.queued) == (0, 0)
        return found

    assert asyncio.run(scenario()) == (1, 0)


def test_samples_weigh_and_who_comes_first_is_let_in_first():
    """At 05a8cae `max_in_flight = 1` ran 16 sequences."""

    async def scenario():
        admission, order = Admission(4, 8), []
        ends = {name: asyncio.Event() for name in "abcd"}

        async def question(name: str, samples: int) -> None:
            async with admission.place(samples):
                order.append(name)
                await ends[name].wait()

        tasks = [
            asyncio.create_task(question(name, samples))
            for name, samples in (("a", 3), ("b", 16), ("c", 1), ("d", 1))
        ]
        await asyncio.sleep(0)
        assert order == ["a"] and admission.queued == 3, "c fits beside a, but b came before it"
        ends["a"].set()
        await asyncio.sleep(0.01)
        assert order == ["a", "b"], "b takes all there is"
        ends["b"].set()
        await asyncio.sleep(0.01)
        assert order == ["a", "b", "c", "d"]
        ends["c"].set()
        ends["d"].set()
        await asyncio.gather(*tasks)
        assert admission._free == 4

    asyncio.run(scenario())
