"""Fills the configurations in `configs/`: `@{name}` stands for a value, `@@` for an at sign."""

import string


class _Template(string.Template):
    delimiter = "@"


def render(source, target, **values):
    """Writes `source` with its values filled in to `target`; a value that is missing is an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_Template(source.read_text()).substitute(values))
    return target
