from packaging.requirements import Requirement

from tests.extras import is_met, lacking, requirements


def test_an_extra_asks_for_what_the_extras_that_it_names_ask_for() -> None:
    train = {requirement.name for requirement in requirements("train")}
    dev = {requirement.name for requirement in requirements("dev")}
    assert {"trl", "datasets"} <= train <= dev
    assert "reward-service" not in dev


def test_what_the_suite_runs_with_lacks_nothing() -> None:
    assert lacking("dev") == []


def test_a_package_that_is_missing_or_too_old_is_not_met() -> None:
    assert is_met(Requirement("pytest>=9"))
    assert not is_met(Requirement("pytest>=9999"))
    assert not is_met(Requirement("no-such-package-anywhere"))
