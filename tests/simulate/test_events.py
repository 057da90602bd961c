import pytest

from tightwire.simulate import Computation, VirtualClock


def test_actions_happen_in_order_of_time_then_of_asking() -> None:
    clock, seen = VirtualClock(), []
    for name, delay_s in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        clock.after(delay_s, lambda name=name: seen.append((name, clock.now_s)))
    clock.run()
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 2.0)]


def test_actions_may_cause_actions() -> None:
    clock, seen = VirtualClock(), []
    clock.after(1.0, lambda: clock.after(0.5, lambda: seen.append(clock.now_s)))
    clock.run()
    assert seen == [1.5]


@pytest.mark.parametrize(
    ("slow_from_s", "fast_from_s", "end_s"), [(0.0, 2.0, 3.0), (0.5, 1.5, 2.5), (1.0, 1.0, 2.0)]
)
def test_work_slows_down_and_catches_up(slow_from_s: float, fast_from_s: float, end_s: float) -> None:
    clock, seen = VirtualClock(), []
    work = Computation(clock, [(1.0, lambda: None), (2.0, lambda: seen.append(clock.now_s))])
    clock.after(slow_from_s, lambda: work.set_speed(0.5))
    clock.after(fast_from_s, lambda: work.set_speed(1.0))
    clock.run()
    assert seen == [pytest.approx(end_s)]


def test_a_milestone_may_change_the_speed() -> None:
    clock, seen = VirtualClock(), []
    work = Computation(clock, [(1.0, lambda: work.set_speed(0.5)), (2.0, lambda: seen.append(clock.now_s))])
    clock.run()
    assert seen == [pytest.approx(3.0)]
