"""Which split a problem belongs to: decided by its content, so that splits cannot overlap."""

import hashlib
import json
from typing import Literal

Split = Literal["pretrain", "train", "dev", "test"]

# Of 16 equal buckets of problem keys; what is not named here is pre-training text.
_BUCKETS: dict[int, Split] = {
    0: "test",
    1: "test",
    2: "test",
    3: "dev",
    4: "train",
    5: "train",
    6: "train",
    7: "train",
}


def digest(key: object) -> str:
    """A stable digest of a JSON value (Python's own `hash` changes with each process)."""
    return hashlib.sha256(json.dumps(key, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def split_of(key: object) -> Split:
    """The only split in which a problem with this key may stand.

    >>> split_of(["mul", [3, 4]]) == split_of(["mul", [3, 4]])
    True
    """
    return _BUCKETS.get(int(digest(key)[:8], 16) % 16, "pretrain")
