"""`pyro.param` statements of a pair, as parameters of its modules.

Pyro keeps the value of `pyro.param("scale", …)` in one store for the whole process. A run needs it in its checkpoint,
on the device of its module, and separate from another run's value of the same name. Therefore the statements of a model
and a guide are found when the pair is assembled. From then on their values are parameters of the module that makes the
statement.
"""

import functools
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppl_gen.core.contracts import (
    Amortized,
    ClosedForm,
    Guide,
    HasDensity,
    HasPictures,
    HasPrior,
    HasTopPrior,
    Model,
    members,
)
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.arguments import take
from ppl_gen.inference.modes import evaluating, untouched
from ppl_gen.inference.reached import modules_of
from ppl_gen.inference.signatures import accepting

_METHODS = members(Model, Guide, HasDensity, HasTopPrior, Amortized, ClosedForm, HasPictures)
"""Methods of a module that may make `pyro.param` statements."""
_OF_NET = "$$$"
"""What `pyro.module` puts between the name of a network and that of its parameter."""
SWAPPED = tuple(members(HasPrior, HasTopPrior))
"""Methods of a model that another prior may replace: an attribute of the model hides its class's own."""


class ParamStatements(nn.Module):
    """A module with the unconstrained values of `pyro.param` statements, and with the networks of `pyro.module`
    statements that are not submodules of the model or the guide."""

    def __init__(self, values: dict[str, Tensor], constrained_to: dict[str, Any], nets: dict[str, nn.Module]):
        super().__init__()
        self.constrained_to = constrained_to
        """Constraint of each parameter, from the statement that created it. A later statement may give the name
        alone."""
        for name, value in values.items():
            self.register_parameter(_key("param", name), nn.Parameter(value.detach().clone()))
        for name, net in nets.items():
            self.add_module(_key("module", name), net)

    def find(self, name: str) -> nn.Parameter | None:
        """The parameter of a statement, or None."""
        return self._parameters.get(_key("param", name))


def _key(kind: str, name: str) -> str:
    """A unique name that a module accepts for a parameter or submodule: it has no dots and equals no attribute."""
    return f"{kind}:{name.replace('%', '%25').replace('.', '%2E')}"


class _ParamHandler(Messenger):
    """Handler that returns parameters of modules for `pyro.param` statements, in place of Pyro's store."""

    def __init__(self, owner: str, tables: list[ParamStatements]):
        super().__init__()
        self.owner, self.tables = owner, tables

    def _pyro_param(self, message: Any) -> None:
        value: Any
        name, initial = message["name"], message["args"][1] if len(message["args"]) > 1 else None
        table = next((table for table in self.tables if table.find(name) is not None), None)
        if table is not None:
            unconstrained, constraint = table.find(name), message["kwargs"].get("constraint", constraints.real)
            if type(constraint) is not type(table.constrained_to[name]):
                constraint = table.constrained_to[name]
            value = transform_to(constraint)(unconstrained)
        elif isinstance(initial, nn.Parameter):  # a statement of pyro.module: the module's own parameter
            unconstrained = value = initial
        elif initial is None:  # a statement of a PyroModule, which puts its own parameters into the store
            return
        else:
            raise BadInput(
                f"pyro.param('{name}') of {self.owner} did not exist when the pair was assembled: make all "
                "statements at every call, or use an nn.Parameter"
            )
        value.unconstrained = lambda: unconstrained  # SVI reads it
        message["value"] = value


def adopt(model: Any, guide: Any, *batch: Any) -> None:
    """Find the `pyro.param` statements of a pair by running it, and turn their values into parameters of its modules. A
    statement that both make belongs to the model. A pair without statements is left as it is.

    :param batch: three images, and their labels if the functions take them.
    :raises BadInput: for a parameter with a row for each image, and for a network that other runs share.
    """
    owned = {id(parameter) for module in (model, guide) for parameter in module.parameters()}
    tables: list[ParamStatements] = []
    stores: dict[int, Any] = {count: {"params": {}, "constraints": {}} for count in (2, 3)}
    for module, function in ((model, model.model), (guide, guide.guide)):
        with untouched(model, guide), evaluating(model, guide):
            for count, store in stores.items():
                few = take(torch.arange(count), batch[0], batch[1:])
                _run(function, store, few.x, *few.args)
        of_two, of_three = (store["params"] for store in stores.values())
        known = {name for table in tables for name in of_two if table.find(name) is not None}
        new = {name: value for name, value in of_two.items() if id(value) not in owned and name not in known}
        _check_sizes(new, of_three, type(module).__name__)
        values, nets = {}, {}
        for name, value in new.items():
            net, of_net, path = name.partition(_OF_NET)
            if not of_net:
                values[name] = value
            elif isinstance(value, nn.Parameter):  # else a copy, which Pyro makes of a parameter that is not contiguous
                nets[net] = _made_by(model, guide, net, path, value)
        if values or nets:
            tables.append(ParamStatements(values, stores[2]["constraints"], nets))
            module.add_module("param_statements", tables[-1])
            owned |= {id(parameter) for net in nets.values() for parameter in net.parameters()}
    if tables:
        _handle_all(model, guide, tables)


def _check_sizes(of_two: dict[str, Tensor], of_three: dict[str, Tensor], owner: str) -> None:
    """Refuse a parameter that is larger for three images than for two."""
    for name, value in of_two.items():
        if name in of_three and of_three[name].shape != value.shape:
            raise BadInput(
                f"pyro.param('{name}') of {owner} has the shape {tuple(value.shape)} for 2 images and "
                f"{tuple(of_three[name].shape)} for 3: compute what belongs to an image from x, or make it for all "
                "num_images and ask for the images' row numbers, guide(x, index)"
            )


def _handle_all(model: nn.Module, guide: nn.Module, tables: list[ParamStatements]) -> None:
    """Wrap the methods of a model, of a guide, and of a prior that the model was given."""
    prior = dict(model.named_children()).get("swapped_prior")
    for module in (model, guide) if prior is None else (model, guide, prior):
        _handle_params(module, tables)
    for name in SWAPPED:
        if prior is not None and name in vars(model):
            vars(model)[name] = prior.prior


def _run(function: Callable[..., Any], store: Any, *batch: Any) -> None:
    """Run a function with Pyro's parameter store replaced by `store`. An error is ignored here: it is reported when the
    pair is read."""
    with pyro.get_param_store().scope(store), warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        accepting(function)(*batch)


def _made_by(model: nn.Module, guide: nn.Module, name: str, path: str, parameter: nn.Parameter) -> nn.Module:
    """Find the network of a `pyro.module` statement that a constructor has stored outside of submodules, as in a list.

    :param path: name of one of the network's parameters.
    :raises BadInput: for a network from elsewhere. No seed draws its weights, and all runs of a process would share it.
    """
    methods = [f for part in (model, guide) for kind in type(part).mro() for f in vars(kind).values()]
    shared = {id(net) for net in modules_of(*(f for f in methods if isinstance(f, FunctionType)))}
    for net in modules_of(model, guide):
        if id(net) not in shared and dict(net.named_parameters()).get(path) is parameter:
            return net
    raise BadInput(
        f"pyro.module('{name}') uses a network that is made outside the model and the guide: no seed draws its "
        "weights, and all runs share them; make it in the constructor, self.net = …, and name self.net"
    )


def _handle_params(module: nn.Module, tables: list[ParamStatements]) -> None:
    """Wrap the methods of a module in `_ParamHandler` with these tables, its own first. The wrapped methods belong to a
    subclass of the module's class, not to the instance, so that a copy of the module uses the tables of the copy."""
    own = module._modules.get("param_statements")
    vars(module)["statement_tables"] = sorted(tables, key=lambda table: table is not own)
    kind = type(module)
    methods: dict[str, Any] = {
        name: _handled(getattr(kind, name)) for name in _METHODS if callable(getattr(kind, name, None))
    }
    make: Any = type(kind)
    module.__class__ = make(
        kind.__name__, (kind,), {**methods, "__module__": kind.__module__, "wraps_statements": True}
    )


def _handled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method in `_ParamHandler` with the tables of its instance."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _ParamHandler(type(self).__name__, vars(self)["statement_tables"]):
            return method(self, *args, **kwargs)

    return call
