"""`pyro.param` statements of a pair, as parameters of its modules.

Pyro keeps the value of `pyro.param("scale", …)` in one store for the whole process. A run needs it in its checkpoint,
on the device of its module, and apart from another run's value of the same name. So the statements of a model and a
guide are found when the pair is put together, and answered from then on by parameters of the module that makes them.
"""

import functools
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppl_gen.core.contracts import Amortized, ClosedForm, Guide, HasDensity, HasPictures, Model, members
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.callables import accepting, evaluating, modules_of

_METHODS = members(Model, Guide, HasDensity, Amortized, ClosedForm, HasPictures)
"""Methods of a module that may make statements."""


class ParamStatements(nn.Module):
    """The unconstrained values of `pyro.param` statements, and the nets of `pyro.module` statements that are no
    submodules."""

    def __init__(self, values: dict[str, Tensor], constrained_to: dict[str, Any], nets: dict[str, nn.Module]):
        super().__init__()
        self.constrained_to = constrained_to
        """By the statement that made the parameter; another may read it by its name alone."""
        for name, value in values.items():
            self.register_parameter(_key("param", name), nn.Parameter(value.detach().clone()))
        for name, net in nets.items():
            self.add_module(_key("module", name), net)

    def find(self, name: str) -> nn.Parameter | None:
        return self._parameters.get(_key("param", name))


def _key(kind: str, name: str) -> str:
    """A name as a module may have it: without dots, and no attribute's. Different names have different keys."""
    return f"{kind}:{name.replace('%', '%25').replace('.', '%2E')}"


class _Answer(Messenger):
    """Answers statements in the place of Pyro's store."""

    def __init__(self, owner: str, tables: list[ParamStatements]):
        super().__init__()
        self.owner, self.tables = owner, tables

    def _pyro_param(self, message: Any) -> None:
        value: Any
        name, initial = message["name"], message["args"][1] if len(message["args"]) > 1 else None
        table = next((table for table in self.tables if table.find(name) is not None), None)
        if table is not None:
            found, constraint = table.find(name), message["kwargs"].get("constraint", constraints.real)
            if type(constraint) is not type(table.constrained_to[name]):
                constraint = table.constrained_to[name]
            value = transform_to(constraint)(found)
        elif isinstance(initial, nn.Parameter):  # of pyro.module: the module's own
            found = value = initial
        elif initial is None:  # of a PyroModule, which has put its own into the store
            return
        else:
            raise BadInput(
                f"pyro.param('{name}') of {self.owner} was not there when the pair was put together: make all "
                "statements at every call, or make it an nn.Parameter"
            )
        value.unconstrained = lambda: found  # which SVI asks for
        message["value"] = value


def adopt(model: Any, guide: Any, *batch: Tensor) -> None:
    """Find the `pyro.param` statements of a pair by running it, and give its modules the parameters that answer them. A
    statement of both is the model's. A pair without statements stays as it is.

    :param batch: three images, and their labels where the functions take them.
    :raises BadInput: for a parameter with a row for each image, and for a net that other runs share.
    """
    own = {id(parameter) for module in (model, guide) for parameter in module.parameters()}
    tables: list[ParamStatements] = []
    stores: dict[int, Any] = {count: {"params": {}, "constraints": {}} for count in (2, 3)}
    for module, function in ((model, model.model), (guide, guide.guide)):
        with evaluating(model, guide):
            for count, store in stores.items():
                _run(function, store, *(part[:count] for part in batch))
        of_two, of_three = (store["params"] for store in stores.values())
        values, nets = {}, {}
        for name, value in of_two.items():
            if id(value) in own or any(table.find(name) is not None for table in tables):
                continue
            net, of_net, path = name.partition("$$$")  # as pyro.module joins them
            if name in of_three and of_three[name].shape != value.shape:
                raise BadInput(
                    f"pyro.param('{name}') of {type(module).__name__} has the shape {tuple(value.shape)} for 2 images "
                    f"and {tuple(of_three[name].shape)} for 3: compute what belongs to an image from x"
                )
            if not of_net:
                values[name] = value
            elif isinstance(value, nn.Parameter):  # else Pyro's copy of one that is not contiguous
                nets[net] = _made_by(model, guide, net, path, value)
        if values or nets:
            tables.append(ParamStatements(values, stores[2]["constraints"], nets))
            module.add_module("param_statements", tables[-1])
            own |= {id(parameter) for net in nets.values() for parameter in net.parameters()}
    if tables:
        prior = dict(model.named_children()).get("swapped_prior")
        for module in (model, guide) if prior is None else (model, guide, prior):
            _answer_from(module, tables)
        if prior is not None:
            model.prior = prior.prior


def _run(function: Callable[..., Any], store: Any, *batch: Tensor) -> None:
    """Add to a store what a function states. One that fails is told where the pair is read."""
    with pyro.get_param_store().scope(store), warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        accepting(function)(*batch)


def _made_by(model: nn.Module, guide: nn.Module, name: str, path: str, parameter: nn.Parameter) -> nn.Module:
    """The net of a `pyro.module` statement that a constructor has put into a list or the like.

    :param path: the name of one of the net's parameters.
    :raises BadInput: for a net from elsewhere. No seed draws its weights, and all runs of a process would share them.
    """
    methods = [f for part in (model, guide) for kind in type(part).mro() for f in vars(kind).values()]
    shared = {id(net) for net in modules_of(*(f for f in methods if isinstance(f, FunctionType)))}
    for net in modules_of(model, guide):
        if id(net) not in shared and dict(net.named_parameters()).get(path) is parameter:
            return net
    raise BadInput(
        f"pyro.module('{name}') is of a net that is made outside of model and guide, so that no seed draws its weights "
        "and all runs share them: make it in the constructor, self.net = …, and name self.net"
    )


def _answer_from(module: nn.Module, tables: list[ParamStatements]) -> None:
    """Let the methods of a module be answered from tables, its own first. That takes a class derived from the module's,
    so that a copy of the module is answered from the tables of the copy."""
    own = module._modules.get("param_statements")
    vars(module)["statement_tables"] = sorted(tables, key=lambda table: table is not own)
    kind = type(module)
    methods = {name: _answered(getattr(kind, name)) for name in _METHODS if callable(getattr(kind, name, None))}
    make: Any = type(kind)
    module.__class__ = make(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})


def _answered(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Answer(type(self).__name__, vars(self)["statement_tables"]):
            return method(self, *args, **kwargs)

    return call
