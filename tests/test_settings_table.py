from tests.settings_table import README, settings_table, with_table


def test_the_readme_has_the_settings_that_the_code_has() -> None:
    readme = README.read_text(encoding="utf-8")
    assert settings_table() in readme, "run `make readme`"
    assert with_table(readme) == readme
