from tests.settings_table import PAGE, settings_table, with_table


def test_the_page_has_the_settings_that_the_code_has() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert settings_table() in page, "run `make readme`"
    assert with_table(page) == page
