"""What one layer of a trunk lacks, or has in another shape, compared with its other layers. Reads names and shapes, without torch."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.checkpoints.checks import check_explained, check_mismatched, check_missing
from app.checkpoints.files import shape_of

IN_LAYER = re.compile(r"^(layers|h)\.(\d+)\.(.+)$")
Shape = tuple[int, ...]


@dataclass(slots=True)
class LayerFaults:
    """By the names that the trunk gives its tensors."""

    missing: set[str] = field(default_factory=set)
    mismatched: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    """The shape of each, and that of most layers."""
    unexpected: set[str] = field(default_factory=set)

    def check(self, source: str, tensors: Mapping[str, Any], prefix: str = "", missing: Iterable[str] = ()) -> None:
        """Raises ModelRefusedError in the words of loading. `prefix` is what the model's class puts before the trunk's names;
        `missing` are other tensors that it lacks."""
        check_missing(source, {*missing, *(f"{prefix}{name}" for name in self.missing)})
        check_mismatched(source, [(f"{prefix}{name}", *shapes) for name, shapes in self.mismatched.items()])
        unexpected = {f"{prefix}{name}": tensors[name] for name in self.unexpected}
        check_explained(source, unexpected, unexpected)


def compare_layers(tensors: Mapping[str, Any], num_layers: int) -> LayerFaults:
    """The faults of a trunk with `num_layers` layers that all have the same tensors.

    What most layers of the files have is expected of each; what only one of three or more has is not expected. Anything between
    is left to the model's class.
    """
    shapes: dict[tuple[str, str], dict[int, Shape]] = {}  # of each tensor of a layer, by the layer's number
    for name, stored in tensors.items():
        if found := IN_LAYER.match(name):
            shapes.setdefault((found[1], found[3]), {})[int(found[2])] = shape_of(stored)
    num_present = len({number for each in shapes.values() for number in each if number < num_layers})
    faults = LayerFaults()
    for (layers, rest), by_number in shapes.items():
        own = {number: shape for number, shape in by_number.items() if number < num_layers}
        odd = by_number.keys() - own.keys()
        if 2 * len(own) > num_present:
            faults.missing |= {f"{layers}.{number}.{rest}" for number in range(num_layers) if number not in own}
            usual, count = Counter(own.values()).most_common(1)[0]
            if 2 * count > len(own):
                faults.mismatched |= {
                    f"{layers}.{number}.{rest}": (shape, usual) for number, shape in own.items() if shape != usual
                }
        elif len(own) == 1 and num_present > 2:  # noqa: PLR2004 - of two layers, either may be the odd one
            odd |= own.keys()
        faults.unexpected |= {f"{layers}.{number}.{rest}" for number in odd}
    return faults
