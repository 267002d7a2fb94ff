"""The `key=value` texts of the command line."""

from typing import Any

from helpers.text_files import parse_yaml


def value_of(override: str) -> Any:
    """What stands behind the first "=", read as YAML.

    Raises ValueError for what is no YAML.

    Example:
        >>> value_of("betas=[0.1, 0.2]")
        [0.1, 0.2]
    """
    try:
        return parse_yaml(override.partition("=")[2])
    except ValueError as error:
        raise ValueError(f"{override!r} has a value that cannot be read: {error}.") from error
