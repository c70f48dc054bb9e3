"""What planning for a budget would take: every stage named, a span only where data decide, more where more is measured."""

import pytest

from bitbudget.errors import InputError
from bitbudget.pipeline.forecast import forecast
from bitbudget.pipeline.planning_time import _doublings


@pytest.fixture(scope="module")
def by_effort() -> dict[str, dict[str, tuple[float, float]]]:
    found = {effort: forecast("demo", effort=effort).planning for effort in ("fast", "normal", "best")}
    return {
        effort: {stage.name: (stage.least_seconds, stage.most_seconds) for stage in stages}
        for effort, stages in found.items()
    }


def test_stages_are_those_of_a_run(by_effort: dict[str, dict[str, tuple[float, float]]]) -> None:
    for stages in by_effort.values():
        assert list(stages) == ["calibrate", "score", "guard"]
        assert all(0 < least <= most for least, most in stages.values())


def test_only_normal_does_not_know_how_much_it_will_measure(by_effort: dict[str, dict[str, tuple[float, float]]]) -> None:
    for effort in ("fast", "best"):
        assert all(least == most for least, most in by_effort[effort].values())
    least, most = by_effort["normal"]["score"]
    assert most > 2 * least


def test_without_an_effort_or_a_probe_nothing_is_said() -> None:
    assert forecast("demo", probe=False, effort="fast").planning == ()
    assert forecast("demo", probe=False).planning == ()
    with pytest.raises(InputError, match="hasty"):
        forecast("demo", effort="hasty")


@pytest.mark.parametrize(("most", "waves"), [(16, [16]), (128, [16, 16, 32, 64]), (40, [16, 16, 8])])
def test_waves_double(most: int, waves: list[int]) -> None:
    assert _doublings(16, most) == waves
