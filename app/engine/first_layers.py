"""The states behind a model's first layers, for tests that ask whether two forwards give the same bits.

Whether they do depends on the kernels that run: on the shapes and types of the matrices, on the number of rows and on the
number of threads, not on the numbers in the matrices. So layers of one kind need one test, and on the packed path a forward
ends behind the first layers that include one of every kind. A checkpoint's 24 or 80 layers are mostly of one kind.
"""

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from app.engine.attention.interface import PackedRow
from app.engine.batch import Batch
from app.engine.forward_memory import matrices_of
from app.engine.reward_model import RewardModel


class StatesCapturedError(Exception):
    """Not a failure: ends a forward once the states behind a layer are known."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states  # (rows, hidden)


def first_layers(model: RewardModel) -> int:
    """How many of the first layers include one of each kind; 0 where a test has to run the whole forward.

    That is on other paths than the packed one, where not all matrices are in the layers, and where only all of the layers
    include each kind. Call it after a packed forward.
    """
    layers, attended = model.layers, model.attended_layers
    if model.plan.path != "packed" or len(attended) != len(layers):
        return 0
    in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
    if not in_layers.issuperset(map(id, matrices_of(model.trunk))):
        return 0
    kinds = [(shape, kind_of(layer)) for shape, layer in zip(attended, layers, strict=True)]
    count = 1 + max(map(kinds.index, kinds))
    return count if count < len(layers) else 0  # the last layer may compute some rows alone


def kind_of(layer: nn.Module) -> Hashable:
    """Equal for layers that run the same kernels: their modules, and the types and shapes of their weights."""
    modules = tuple((name, type(module)) for name, module in layer.named_modules())
    weights = tuple((name, type(each), each.dtype, each.shape) for name, each in layer.named_parameters())
    return modules, weights


def states_for_bits(model: RewardModel, batch: Batch, num_layers: int) -> Tensor:
    """(tokens of all sequences, hidden) behind the first `num_layers` layers, or of the whole forward where that is 0.

    All states of the batch must be wanted.
    """
    if not num_layers:
        return model.compute(batch).states
    prepared = model.prepare(batch)
    assert prepared.packed_row is not None
    hook = model.layers[num_layers - 1].register_forward_hook(capture(prepared.packed_row))
    try:
        return model.launch(prepared).states
    except StatesCapturedError as captured:
        return captured.states[prepared.rows]
    finally:
        hook.remove()


def capture(packed_row: PackedRow) -> Any:
    """A hook that ends the forward with the states that a layer returns."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, Tensor) and states.shape[:2] == (1, packed_row.num_rows):  # else the forward goes on
            raise StatesCapturedError(states[0])

    return hook
