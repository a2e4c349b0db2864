from pathlib import Path

import pytest

from tests.models import make_language_model


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model to train on."""
    return make_language_model(tmp_path_factory.mktemp("lm"))
