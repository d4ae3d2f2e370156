"""Packages of the optional extras, imported where they are used."""

from importlib import import_module
from typing import Any

__all__ = ["extra"]


def extra(module: str, package: str | None = None, *, needed_by: str = "train") -> Any:
    """Import a module of an optional extra; ImportError says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package or module} could not be imported ({error}); install minidiff with its extra "
            f"{needed_by!r}, in a clone by pip install -e '.[{needed_by}]'."
        ) from error
