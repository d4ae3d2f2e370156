"""Packages of the optional extra ``train``, imported where they are used."""

from importlib import import_module
from typing import Any

__all__ = ["extra"]


def extra(module: str, package: str | None = None) -> Any:
    """Import a module of the optional extra ``train``; ImportError says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{package or module} could not be imported ({error}); pip install "minidiff[train]".'
        ) from error
