"""Data for evaluation and training: files and hub sets of any record format, as data sets.

`loading` reads them, `formats` and `conversation` know the record formats, `conversion` writes
some back, `files` opens the containers, `registry` knows data sets by name.
"""

from helpers.data.formats import to_preference
from helpers.data.loading import (
    LoadReport,
    Read,
    check_usable,
    leaks,
    load_records,
    read_rows,
)

__all__ = [
    "LoadReport",
    "Read",
    "check_usable",
    "leaks",
    "load_records",
    "read_rows",
    "to_preference",
]
