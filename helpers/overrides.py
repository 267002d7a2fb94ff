"""The `key=value` texts of the command line."""

from typing import Any

import yaml


def value_of(override: str) -> Any:
    """What stands behind the first "=", read as YAML.

    Raises ValueError for what is no YAML.

    Example:
        >>> value_of("betas=[0.1, 0.2]")
        [0.1, 0.2]
    """
    try:
        return yaml.safe_load(override.partition("=")[2])
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it is no YAML"
        raise ValueError(f"{override!r} has a value that cannot be read: {problem}.") from error
