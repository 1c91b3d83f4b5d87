"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import ppl_gen.guides
import ppl_gen.models
import ppl_gen.networks
import ppl_gen.priors

PACKAGES = (ppl_gen.guides, ppl_gen.models, ppl_gen.networks, ppl_gen.priors)
MODULES = [f"{package.__name__}.{info.name}" for package in PACKAGES for info in pkgutil.iter_modules(package.__path__)]


def _classes(module: ModuleType) -> list[type]:
    """The public classes of a module."""
    classes = (each for name, each in inspect.getmembers(module, inspect.isclass) if not name.startswith("_"))
    return [each for each in classes if each.__module__ == module.__name__]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0, capsys.readouterr().out
    assert result.attempted > 0


@pytest.mark.parametrize("name", MODULES)
def test_every_class_has_one(name: str) -> None:
    """Or it is a dictionary of options, which the functions that take it show."""
    for cls in _classes(importlib.import_module(name)):
        assert ">>>" in (cls.__doc__ or "") or issubclass(cls, dict), cls
