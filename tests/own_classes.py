"""Classes of a user's own, as the text of a file that a test writes."""

GUIDE = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class MyGuide(nn.Module):
    """A guide of one's own.

    :param scale: standard deviation of everything.
    """

    def __init__(self, data_dim, latent_dim, *, scale: float = 0.5, wide: bool = False):
        super().__init__()
        self.loc = nn.Linear(data_dim, latent_dim)
        self.scale = scale * (2 if wide else 1)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), self.scale).to_event(1))
'''

PAIRS = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(4, data_dim), nn.Linear(data_dim, 8)

    def likelihood_of(self, z):
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)

    def parts(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return loc, (log_scale / 10).exp()


class Joint(Base):
    '''The label is observed too, and before the image; nothing but z is latent.'''

    def __init__(self, data_dim):
        super().__init__(data_dim)
        self.of_label = nn.Embedding(10, 4)

    def model(self, x=None, y=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(10)), obs=y)
            z = pyro.sample("z", dist.Normal(self.of_label(y), 1.0).to_event(1))
            return pyro.sample("x", self.likelihood_of(z), obs=x)


class Plate(Base):
    '''The units of z are in a plate of their own.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            with pyro.plate("units", 4, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", self.likelihood_of(z.transpose(-1, -2)), obs=x)


class PlateGuide(Base):
    def guide(self, x):
        loc, scale = self.parts(x)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 4, dim=-2):
            pyro.sample("z", dist.Normal(loc.T, scale.T))


class Pixels(Base):
    '''The pixels are in a plate, so that an image is a column.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            with pyro.plate("pixels", 64, dim=-2):
                logits = self.decoder(z).transpose(-1, -2)
                return pyro.sample("x", dist.Bernoulli(logits=logits), obs=None if x is None else x.T)


class Loop(Base):
    '''A loop over a plate, whose sites have names of their own.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = [pyro.sample(f"z{unit}", dist.Normal(torch.zeros(()), 1.0)) for unit in pyro.plate("units", 4)]
            return pyro.sample("x", self.likelihood_of(torch.stack(z, -1)), obs=x)


class LoopGuide(Base):
    def guide(self, x):
        loc, scale = self.parts(x)
        with pyro.plate("data", len(x)):
            for unit in pyro.plate("units", 4):
                pyro.sample(f"z{unit}", dist.Normal(loc[:, unit], scale[:, unit]))


class Factor(Base):
    '''A factor beside the image, with which p(x, z) does not sum to 1.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.factor("small", -0.1 * z.square().sum(-1))
            return pyro.sample("x", self.likelihood_of(z), obs=x)


class Bounded(Base):
    '''A z at which x is impossible, which the guide draws now and then.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            near = dist.Binomial((z.abs().amax(-1) < 3).to(z), 0.5)
            pyro.sample("near", near, obs=None if x is None else torch.ones(len(x)))
            return pyro.sample("x", self.likelihood_of(z), obs=x)


class BoundedGuide(Base):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * self.parts(x)[0], 0.66).to_event(1))
"""
