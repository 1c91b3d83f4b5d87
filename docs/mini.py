"""ppl_gen in one file: a variational autoencoder, its bound, and how far the bound is from log p(x).

It needs torch, Pyro and scikit-learn, and nothing of the package. Read it from top to bottom, as it runs:
`python docs/mini.py` takes half a minute. The package does the same for any model and guide, with diagnostics that say
when not to trust the result. The last lines of this file say where in the package each part continues.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits
from torch import Tensor, nn

# 1. DATA. scikit-learn comes with 1,797 scanned digits of 8 x 8 pixels, with grey values from 0 to 16. The likelihood
# below is a probability of binary pixels. A grey value is therefore read as the probability that its pixel is 1, and
# the pixel is drawn. Training images are drawn again at each epoch. Test images are drawn once, because log p(x) of
# other draws is another number.


def digits(num_test: int = 300) -> tuple[Tensor, Tensor]:
    """Grey training images [1797 - num_test, 64] in [0, 1], and binary test images [num_test, 64]."""
    grey = torch.from_numpy(load_digits().data).float() / 16
    generator = torch.Generator().manual_seed(0)  # a separate one, so that no other seed changes the split
    grey = grey[torch.randperm(len(grey), generator=generator)]
    return grey[num_test:], torch.bernoulli(grey[:num_test], generator=generator)


# 2. THE MODEL says how an image is made: draw a vector z, compute each pixel's probability from z, draw the pixel.
#
#     p(z) = N(0, I),    p(x | z) = prod_d Bernoulli(x_d; decoder(z)_d)       (Kingma and Welling 2014, appendix C)
#
# `pyro.plate` declares the images independent, so that a log-density has one entry per image. `to_event(1)` declares
# that the last dimension is one vector: the units of z, or the pixels.


class VAE(nn.Module):
    def __init__(self, data_dim: int, *, latent_dim: int = 10, hidden_dim: int = 200):
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, data_dim))

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) of images x [images, data_dim]. Without x, n images are drawn."""
        pyro.module("decoder", self.decoder)  # SVI learns the weights that are registered here
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            # With `obs`, nothing is drawn here: the log-density of the given images is recorded.
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


# 3. THE GUIDE. log p(x) is the logarithm of the integral of p(x, z) over z, which has no closed form. Neither has the
# posterior p(z | x), the distribution of the z that explain an image. The guide q(z | x) approximates the posterior: a
# network maps the image to a mean and a scale for each unit of z.
#
#     q(z | x) = N(mu(x), diag sigma(x)^2)                                    (Kingma and Welling 2014, equation 9)
#
# It samples the model's latent site "z" in a plate of the same size. It is a separate class, so that another guide can
# replace it. Pyro draws z as mu + sigma * noise, which lets gradients pass through the sample.


class NormalGuide(nn.Module):
    def __init__(self, data_dim: int, latent_dim: int, *, hidden_dim: int = 200):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(data_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2 * latent_dim))

    def guide(self, x: Tensor) -> None:
        """q(z | x) of images x [images, data_dim]."""
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


# 4. TRAINING. For any q there is a lower bound that needs only samples of q:
#
#     log p(x) >= ELBO = E_q[log p(x, z) - log q(z | x)]                       (Kingma and Welling 2014, equation 2)
#
# Stochastic variational inference maximizes it over the weights of model and guide, with one sample of z per image. It
# rises when log p(x) rises, and when the guide comes nearer to the posterior. The ELBO alone does not tell which. That
# is why the rest of this file estimates log p(x).


def train(vae: VAE, guide: NormalGuide, grey: Tensor, epochs: int, batch_size: int = 50) -> None:
    """Train both on grey images [images, data_dim], and print the ELBO five times."""
    svi = SVI(vae.model, guide.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for epoch in range(1, epochs + 1):
        x = torch.bernoulli(grey)[torch.randperm(len(grey))]
        # `step` returns minus the ELBO, summed over the images of the batch.
        elbo = -sum(svi.step(batch) for batch in x.split(batch_size)) / len(x)
        if epoch % max(1, epochs // 5) == 0:
            print(f"epoch {epoch:4}  ELBO {elbo:7.2f}  (training images)")


# 5. IMPORTANCE WEIGHTS. All estimates below are made of one number for each sample z_s ~ q(z | x) of each image:
#
#     log w_s = log p(x, z_s) - log q(z_s | x)
#
# If the guide is the posterior, every w_s is p(x). The further the guide is from the posterior, the more they differ.
# Pyro computes them in two runs: `trace` records what the guide draws, and `replay` gives these draws to the model.


@torch.no_grad()
def log_weights(model, guide, x: Tensor, num_samples: int) -> Tensor:
    """log w [num_samples, images] in nats, for a model and guide whose one plate is that of the images."""
    with pyro.plate("samples", num_samples, dim=-2):  # left of the images' plate: z is [num_samples, images, units]
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    # "log_prob" has an entry for each sample and image. Their sum over images, "log_prob_sum", is enough for training;
    # here it would be wrong, because the logarithm of the mean weight is taken for each image.
    traces = model_trace, guide_trace
    log_p, log_q = (sum(site["log_prob"] for site in t.nodes.values() if "log_prob" in site) for t in traces)
    return log_p.double() - log_q.double()


# 6. BOUNDS. The ELBO is E[log w]. The mean weight is unbiased for p(x), so the logarithm of the mean of k weights comes
# closer to log p(x) than the mean of their logarithms. Its expectation is a lower bound that rises with k:
#
#     L_k = E[log (1/k) sum_{s <= k} w_s],    ELBO = L_1 <= L_2 <= ... <= log p(x)      (Burda et al. 2016, equation 8)
#
# log p(x) is estimated by L_S, from all S samples. The estimate is biased low, by about var(w) / (2 S p(x)^2).


def iwae_bound(log_w: Tensor, k: int) -> Tensor:
    """L_k [images], averaged over the disjoint blocks of k samples in log_w [samples, images]."""
    blocks = log_w[: len(log_w) // k * k].reshape(-1, k, log_w.shape[1])
    return (blocks.logsumexp(1) - math.log(k)).mean(0)


# Is S large enough? Where a few weights hold most of the sum, the estimate depends on these few. The effective sample
# size is S if all weights are equal, and 1 if one of them holds the whole sum. The Monte Carlo variance of log p(x)
# follows from it by the delta method. Neither knows of a region of z that the guide does not visit.


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 [images] of log_w [samples, images]: Kong (1992)."""
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def mc_variance(log_w: Tensor) -> Tensor:
    """var(w) / (S p(x)^2) [images], the variance of the estimate of log p(x), of log_w [samples, images]."""
    return (1 / effective_sample_size(log_w) - 1 / len(log_w)) * len(log_w) / (len(log_w) - 1)


# 7. A TEST. Where log p(x) is known, the estimate must agree with it. For z ~ N(0, 1) and x ~ N(z, 1) it is that of
# N(0, 2). The posterior is N(x / 2, 1 / 2). The guide below has the same mean and twice the variance.


def known_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def known_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


# 8. ALL OF IT. The gap is log p(x) - ELBO = KL(q(z | x) || p(z | x)): how far the guide is from the posterior.


def main(epochs: int = 100, num_samples: int = 1000, num_images: int = 300) -> tuple[VAE, NormalGuide, Tensor, Tensor]:
    """Print the results; return model, guide, test images [images, 64] and their log weights [num_samples, images]."""
    pyro.clear_param_store()  # weights of an earlier call
    pyro.set_rng_seed(0)

    x = torch.linspace(-3, 3, 7)
    log_w = log_weights(known_model, known_guide, x, 10_000)
    error = iwae_bound(log_w, 10_000) - dist.Normal(0.0, 2**0.5).log_prob(x)
    print(f"known log p(x): largest error {error.abs().max():.4f}, expected {mc_variance(log_w).max().sqrt():.4f}")

    grey, x = digits()
    vae, guide, x = VAE(64), NormalGuide(64, 10), x[:num_images]
    train(vae, guide, grey, epochs)
    # A few images at a time: the decoder's output is [num_samples, images, 64].
    log_w = torch.cat([log_weights(vae.model, guide.guide, part, num_samples) for part in x.split(50)], 1)
    bounds = {f"IWAE, k = {k}": iwae_bound(log_w, k) for k in (10, 100) if k < num_samples}
    rows = {"ELBO": log_w.mean(0), **bounds, "log p(x)": iwae_bound(log_w, num_samples)}
    print(f"{len(x)} test images, nats per image ± standard error over images, S = {num_samples}")
    for name, values in {**rows, "gap": rows["log p(x)"] - rows["ELBO"]}.items():
        print(f"{name:14} {values.mean():7.2f} ± {values.std() / math.sqrt(len(x)):.2f}")
    print(f"Monte Carlo error of log p(x) {mc_variance(log_w).sum().sqrt() / len(x):.4f}")
    print(f"effective sample size: median {effective_sample_size(log_w).median():.0f} of {num_samples}")
    return vae, guide, x, log_w


if __name__ == "__main__":
    torch.set_num_threads(1)  # such small matrices are slower with more
    main()

# IN THE PACKAGE: models/vae.py and guides/normal.py are parts 2 and 3 with options. inference/importance.py has parts 5
# and 6 for any Pyro pair, with k-hat, the bias and a second opinion. The package takes the two classes as they are:
# python -m ppl_gen.fit docs/mini.py:VAE --guide docs/mini.py:NormalGuide --data digits
