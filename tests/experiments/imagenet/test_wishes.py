import jax.numpy as jnp
import numpy as np

from experiments.imagenet import wishes
from experiments.imagenet.processes import Ending
from experiments.imagenet.wishes import AHEAD, Clock, Wishes, fetched


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def clock_at(monkeypatch, **settings):
    time = FakeTime()
    monkeypatch.setattr(wishes, "time", time)
    ending = Ending()
    return time, ending, Clock(ending, **({"deadline": None, "checkpoint_minutes": 10} | settings))


class TestClock:
    def test_nothing(self, monkeypatch):
        _, _, clock = clock_at(monkeypatch)
        assert clock.wishes().tolist() == [0, 0, 0]

    def test_skipped_examples_are_told(self, monkeypatch):
        _, _, clock = clock_at(monkeypatch)
        assert Wishes(*clock.wishes(5)) == Wishes(skipped=5)

    def test_told_to_end(self, monkeypatch):
        _, ending, clock = clock_at(monkeypatch)
        ending.told = True
        assert Wishes(*clock.wishes()) == Wishes(stop=1)

    def test_the_time_is_up(self, monkeypatch):
        time, _, clock = clock_at(monkeypatch, deadline=100.0 + 120, checkpoint_minutes=60)
        time.now += 119
        assert Wishes(*clock.wishes()) == Wishes()
        time.now += 2
        assert Wishes(*clock.wishes()) == Wishes(stop=1)

    def test_a_checkpoint_is_due(self, monkeypatch):
        time, _, clock = clock_at(monkeypatch)
        time.now += 601
        assert Wishes(*clock.wishes()) == Wishes(save=1)
        clock.saved()
        assert Wishes(*clock.wishes()) == Wishes()

    def test_only_the_first_process_looks_at_the_clock(self, monkeypatch):
        monkeypatch.setattr(wishes.jax, "process_index", lambda: 1)
        time, ending, clock = clock_at(monkeypatch, deadline=101.0)
        time.now += 10_000
        assert Wishes(*clock.wishes()) == Wishes()
        ending.told = True
        assert Wishes(*clock.wishes()) == Wishes(stop=1)


class TestFetched:
    def test_a_few_are_on_their_way(self):
        asked = []

        def results():
            for number in range(5):
                asked.append(number)
                yield jnp.array(number)

        behind = []
        for number in fetched(results()):
            assert isinstance(number, np.ndarray)
            behind.append((int(number), len(asked)))
        assert behind == [(0, AHEAD + 1), (1, AHEAD + 2), (2, AHEAD + 3), (3, 5), (4, 5)]

    def test_none(self):
        assert list(fetched([])) == []
