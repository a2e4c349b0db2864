"""The direction along which the safety head is shifted."""

import torch

from models.recipe.export import constant_direction


def test_a_constant_is_found_in_states_that_have_one() -> None:
    torch.manual_seed(0)
    states = torch.randn(200, 8)
    states[:, 3] = 2.0
    direction = constant_direction(states)
    assert direction.shape == (1, 8)
    assert (states @ direction.T - 1).abs().max() < 0.05
