"""Callable modules: ``amsam_med.segment(...)`` calls the function of that name in the module ``amsam_med.segment``.

A package can have only one attribute of a name, and importing a submodule of that name always sets it to the module. If
it were the function, dotted names through it (a bundle's ``amsam_med.train.RunRecorder``) would fail; if it were a
plain module, it could not be called. So the modules ``segment``, ``evaluate`` and ``train`` are made callable.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from amsam_med.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)


class Verb(ModuleType):
    """A module that is called as its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's, for notebooks."""
        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return self.__dict__[self.__name__.rpartition(".")[2]]


def make_callable(module: str) -> None:
    """Make a module callable as its function of the same name.

    Args:
        module: The module's ``__name__``; the module calls this after it has defined the function.
    """
    sys.modules[module].__class__ = Verb


def with_chosen(options: Options, chosen: Mapping[str, Any]) -> Options:
    """Options with some of them replaced.

    Args:
        options: A dataclass.
        chosen: Values by the names of its fields.

    Raises:
        ConfigError: The dataclass has no field of such a name.
    """
    known = [field.name for field in fields(options)]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"unknown option {', '.join(unknown)}; known are {', '.join(known)}")
    return replace(options, **chosen)
