"""When a refusal is for good."""

from services.gateway.upstream.verdict import MIN_REFUSALS, MIN_SECONDS, Verdict


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_first_refusal_is_for_good_while_nothing_worked() -> None:
    verdict = Verdict(Clock())
    verdict.forget()
    assert verdict.is_final()


def test_refusals_after_it_worked_are_for_good_when_they_stay() -> None:
    clock = Clock()
    verdict = Verdict(clock)
    verdict.worked(delivered=True)
    finals = []
    for _ in range(MIN_REFUSALS):
        finals.append(verdict.is_final())
        clock.now += MIN_SECONDS / MIN_REFUSALS
    assert not any(finals)  # enough of them, and not for long enough
    clock.now += MIN_SECONDS
    assert verdict.is_final()


def test_few_refusals_are_not_for_good_however_long_they_take() -> None:
    clock = Clock()
    verdict = Verdict(clock)
    verdict.worked(delivered=True)
    for _ in range(MIN_REFUSALS - 1):
        assert not verdict.is_final()
        clock.now += MIN_SECONDS


def test_anything_in_between_begins_the_series_anew() -> None:
    for between in ("delivered", "other failure", "only subscribed"):
        clock = Clock()
        verdict = Verdict(clock)
        verdict.worked(delivered=False)
        for _ in range(MIN_REFUSALS):
            verdict.is_final()
        clock.now += MIN_SECONDS
        if between == "other failure":
            verdict.forget()
        else:
            verdict.worked(delivered=between == "delivered")
        assert verdict.is_final() == (between == "only subscribed")


def test_wrong_data_are_final_until_a_tick_came() -> None:
    verdict = Verdict(lambda: 0.0)
    verdict.worked(delivered=False)
    assert not verdict.is_final()
    assert verdict.is_final(wrong_data=True)
    verdict.worked(delivered=True)
    assert not verdict.is_final(wrong_data=True)
