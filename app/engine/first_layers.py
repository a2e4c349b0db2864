"""The hidden states after a model's first layers, for tests of whether two forward passes give the same bits.

That depends on the kernels that run: on the shapes and dtypes of the matrices, the number of rows and the number of threads,
whatever the matrices contain. So one layer of each kind is enough, and on the packed path the tested forward pass stops
after the first layers that include one of every kind. Most of a checkpoint's 24 or 80 layers are of one kind.
"""

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from app.engine.attention.interface import PackedRow
from app.engine.batch import Batch
from app.engine.forward_memory import matrices_of
from app.engine.reward_model import RewardModel


class StatesCapturedError(Exception):
    """Control flow: ends a forward pass once the states after a layer are known."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states  # (rows, hidden)


def first_layers(model: RewardModel) -> int:
    """How many of the first layers include one of each kind; 0 if a test must run the whole forward pass.

    It must if the path is not the packed one, some matrices are outside the layers, or only all of the layers include each
    kind. Call it after a packed forward pass.
    """
    layers, attended = model.layers, model.attended_layers
    if model.plan.path != "packed" or len(attended) != len(layers):
        return 0
    in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
    if not in_layers.issuperset(map(id, matrices_of(model.trunk))):
        return 0
    kinds = [(shape, kind_of(layer)) for shape, layer in zip(attended, layers, strict=True)]
    count = 1 + max(map(kinds.index, kinds))
    return count if count < len(layers) else 0  # the last layer may compute only some of the rows


def kind_of(layer: nn.Module) -> Hashable:
    """Equal for layers that run the same kernels: their modules, and the dtypes and shapes of their weights."""
    modules = tuple((name, type(module)) for name, module in layer.named_modules())
    weights = tuple((name, type(each), each.dtype, each.shape) for name, each in layer.named_parameters())
    return modules, weights


def states_for_bits(model: RewardModel, batch: Batch, num_layers: int) -> Tensor:
    """(tokens of all sequences, hidden): states after the first `num_layers` layers; 0 means the whole forward pass.

    The batch must want the token scores of every sequence.
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
    """A forward hook that ends the pass by raising StatesCapturedError with the states that the layer returns."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, Tensor) and states.shape[:2] == (1, packed_row.num_rows):  # else the pass continues
            raise StatesCapturedError(states[0])

    return hook
