"""Verbs as calls: ``amsam_med.segment(...)``, beside the module ``amsam_med.segment`` that holds the function.

A package has one attribute of a name, and importing a module of that name sets it, whenever and whoever does so. If it
were the function, dotted names that lead through it (a bundle's ``amsam_med.train.RunRecorder``) would end there; if it
were a plain module, nobody could call it. So the three modules of verbs are modules that can be called.
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
    """Let a module be called as its function of the same name.

    Args:
        module: Its ``__name__``; it calls this when the function is defined.
    """
    sys.modules[module].__class__ = Verb


def with_chosen(options: Options, chosen: Mapping[str, Any]) -> Options:
    """Options with some of them replaced.

    Args:
        options: A dataclass.
        chosen: Values by the names of its fields.

    Raises:
        ConfigError: It has no field of a name.
    """
    known = [field.name for field in fields(options)]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"unknown option {', '.join(unknown)}; known are {', '.join(known)}")
    return replace(options, **chosen)
