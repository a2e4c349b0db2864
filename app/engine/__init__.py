"""text -> TokenSequence -> queue -> batch within a token budget -> prefix tree -> one packed forward pass -> scores.

Knows no HTTP: it raises the errors of `app.errors`, which the caller maps to responses.
"""

import logging

# transformers imports torchao if it is installed, and torchao warns about every GPU kernel that it cannot load.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
