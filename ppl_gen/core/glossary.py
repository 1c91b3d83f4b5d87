"""The terms of the tables, each defined once: the pages of runs and the documentation's glossary are made from this.

It is data alone. Formulas are plain text.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A term with its definition."""

    name: str
    anchor: str
    """The name of its entry in a link: `#k-hat`."""
    text: str
    """The definition: what it is, its formula if that is short, and when to distrust it."""
    more: str = ""
    """The page of the documentation that says more, with a heading if there is one."""
    words: tuple[str, ...] = ()
    """Other words that tables have for it. A page links them, and the name, to the entry."""


# The bound and log p(x) ------------------------------------------------------------------------------------------

_NAMES = (
    "log p(x | y)",
    "log p(x, y)",
    "log p(x_obs)",
    "log p(x_obs | y)",
    "log p(x_obs, y)",
    "log p(f(x))",
)
_BOUND = (
    Term(
        "nats",
        "nats",
        "Unit of every bound and log-probability: the natural logarithm, per image. A difference of d nats is a "
        "factor of e^d in p(x).",
        "estimates.md",
        ("nat",),
    ),
    Term(
        "log p(x)",
        "log-px",
        "Log-probability of an image under the model: log ∫ p(z) p(x | z) dz, a sum if z is finite. It is the model's "
        "alone, whatever the guide. With labels y: log p(x | y) or log p(x, y). x_obs: pixels not missing. f(x): "
        "observed in x's place.",
        "estimates.md",
        (*_NAMES, "log density of x", "log marginal likelihood"),
    ),
    Term(
        "ELBO",
        "elbo",
        "Evidence lower bound: the mean of log p(x, z) − log q(z | x) over z from the guide. It is never above log "
        "p(x) in expectation. It belongs to the model and the guide together: a higher ELBO can mean a better guide.",
        "estimates.md#the-formulas",
    ),
    Term(
        "gap",
        "gap",
        "log p(x) − ELBO, which is KL(q(z | x) ‖ p(z | x)): how far the guide is from the exact posterior. If log "
        'p(x) is "at least", so is the gap.',
        "estimates.md#the-gap",
    ),
    Term(
        "reconstruction and KL",
        "reconstruction-and-kl",
        "The two terms of the ELBO: ELBO = reconstruction − KL. Reconstruction is the mean of log p(x | z) over z "
        "from the guide. KL is KL(q(z | x) ‖ p(z)): what the guide's z says "
        "about the image. A KL near 0 means that z is not used.",
        "runs.md",
        ("reconstruction", "KL"),
    ),
    Term(
        "IWAE bound",
        "iwae-bound",
        "L_k, the mean of log (1/k) Σ w over k samples of the guide, with the importance weights w (Burda et al. "
        "2016). L_1 is the ELBO. L_k rises to log p(x) with k, and is never above it in expectation.",
        "estimates.md#the-formulas",
        ("IWAE bounds", "IWAE"),
    ),
    Term(
        "approximation gap",
        "approximation-gap",
        "log p(x) minus the best ELBO that the guide's family can reach on each image: what the family cannot "
        "represent. Another family, such as a flow, may reduce it. A search that ends too early makes it look larger.",
        "gaps.md",
        ("approx.",),
    ),
    Term(
        "amortization gap",
        "amortization-gap",
        "The best ELBO of the guide's family on each image, minus the ELBO of the encoder: what the encoder misses. A "
        "larger encoder may reduce it. It looks too small if the search stays in the lesser of two modes.",
        "gaps.md",
        ("amort.",),
    ),
    Term(
        "context",
        "context",
        "Output of the encoder for an image, from which the guide makes q(z | x).",
        "gaps.md#how-the-search-works",
    ),
)

# How log p(x) is estimated ---------------------------------------------------------------------------------------

_ESTIMATES = (
    Term(
        "importance sampling",
        "importance-sampling",
        "log p(x) ≈ log (1/S) Σ w, with S samples z from the guide and the weights w = p(x, z) / q(z | x). It is "
        "below log p(x) in expectation. Distrust it if k-hat is too high, or if the guide may miss a mode of p(z | "
        "x).",
        "estimates.md#the-formulas",
        (
            "importance samples",
            "importance sample",
            "importance weights",
            "importance-sampled",
            "importance",
            "prior sampling",
            "several proposals",
        ),
    ),
    Term(
        "enumeration",
        "enumeration",
        "log p(x) as a sum over all values of a z that is finite. Like a closed form, it is exact: its only error is "
        "rounding.",
        "enumeration.md",
        ("exact", "exactly", "enumerated"),
    ),
    Term(
        "quadrature",
        "quadrature",
        "log p(x) as a sum over a grid of z, which is refined until no image moves by more than a tolerance. It is "
        "for z of one to three continuous units, and needs no guide. Distrust it only if p(x, z) may have a narrow "
        "peak far from every other.",
        "quadrature.md",
    ),
    Term(
        "annealing",
        "annealing",
        "Annealed importance sampling (Neal 2001): chains of Hamiltonian Monte Carlo go from the prior to the "
        "posterior over many temperatures. It needs no guide. It is below log p(x) in expectation, and with too few "
        "temperatures it can be far below.",
        "annealing.md",
        ("annealed", "AIS"),
    ),
    Term(
        "bounds from both sides",
        "bounds-from-both-sides",
        "A lower and an upper bound of log p(x) on images that the model draws itself, whose z is known "
        "(bidirectional Monte Carlo, Grosse et al. 2015). Their distance says how low an estimate may be. It holds "
        "for real images as far as they are like the model's.",
        "annealing.md#bounds-from-both-sides",
        ("apart", "AIS width", "width", "bidirectional Monte Carlo"),
    ),
    Term(
        "settled",
        "settled",
        "An image whose log p(x) is known to a tolerance: its Monte Carlo error and bias are small, its k-hat is "
        "fine, and two proposals agree. `--num-samples auto` takes samples until this is so.",
        "settling.md",
        ("settle",),
    ),
)

# When not to trust it --------------------------------------------------------------------------------------------

_TRUST = (
    Term(
        "at least",
        "at-least",
        "log p(x) is likely higher than the number: k-hat is too high or unknown for some image, or another estimate "
        "is above it. One such image is enough, because the mean is a sum over images. The gap is then at least the "
        "number, too.",
        "trust.md",
        ("≥", "is too low"),
    ),
    Term(
        "standard error",
        "standard-error",
        "The number after ±: how far the mean would move for other images of the same kind, with the weights as they "
        "are. It does not say how far another seed of training would move it, nor how wrong the estimate is.",
        "compare.md",
        ("± standard error over images", "± standard error", "± s.e."),
    ),
    Term(
        "Monte Carlo error",
        "monte-carlo-error",
        "Standard error of the estimate because its samples of z are random: other samples of the same images would "
        'move the mean by about this. If the number reads "at least", the true error is larger.',
        "estimates.md#the-formulas",
    ),
    Term(
        "k-hat",
        "k-hat",
        "Shape of the tail of an image's importance weights: a generalized Pareto distribution, fitted to the largest "
        "of them (Vehtari et al. 2024). Above min(1 − 1/log10 S, 0.7) the samples have not reached the largest "
        "weights. It judges the samples that were drawn: a mode that the guide never visits leaves it low.",
        "trust.md#k-hat-too-high-unknown-fine",
        ("Pareto k-hat",),
    ),
    Term(
        "effective sample size",
        "effective-sample-size",
        "(Σ w)² / Σ w² of an image's importance weights: the number of equal weights that would do as well. It is S "
        "if the guide is the exact posterior, and near 1 if one sample carries the sum.",
        "estimates.md#the-formulas",
        ("ESS", "effective"),
    ),
    Term(
        "second opinion",
        "second-opinion",
        "log p(x) from a few more samples, half of them from the prior. If it is above importance sampling beyond "
        "chance, importance sampling is too low: the guide may miss a mode. With many units of z it rarely sees one, "
        "and its silence proves nothing.",
        "trust.md#the-second-opinion-and-blind-images",
    ),
    Term(
        "blind",
        "blind",
        "An image is blind if the second opinion's samples from the prior carry less than 1 % of its weights. They "
        "would not have found another mode either. Annealing can look there.",
        "trust.md#the-second-opinion-and-blind-images",
    ),
    Term(
        "jackknife",
        "jackknife",
        "The jackknife repeats an estimate with each sample left out, and estimates its bias from the changes "
        "(Nowozin 2018). The estimated bias of log p(x) is below 0: the estimate is low. Corrected IWAE values are "
        "closer to log p(x), but no longer bounds.",
        "estimates.md#the-formulas",
        ("bias (jackknife)", "estimated bias"),
    ),
    Term(
        "active units",
        "active-units",
        "Latent units whose posterior mean differs between images: its variance over images is above 0.01 (Burda et "
        "al. 2016). The others say nothing about the image. With none, the posterior has collapsed, and z is not "
        "used.",
        "runs.md",
        ("active latent units",),
    ),
    Term(
        "support",
        "support",
        "The values of z that a distribution can draw. If the guide leaves out a part of the prior's support, "
        'importance sampling misses that part, and log p(x) is "at least".',
        "trust.md",
        ("prior's support",),
    ),
    Term(
        "calibrated",
        "calibrated",
        "The guide's samples cannot be told from exact posterior samples by their ranks. This is tested on images "
        "that the model draws, whose z is known. A departure that is small, or on real images alone, stays unseen.",
        "calibration.md",
        ("calibration", "verdict", "verdicts", "false alarm", "ranked", "depart"),
    ),
    Term(
        "coverage",
        "coverage",
        "How often an interval or a region of the guide holds the z that the image was drawn with. 90 % regions "
        "should hold it 90 % of the time. If it is less, the guide is too narrow; if more, too wide.",
        "calibration.md#read-the-verdict",
        ("90 % regions", "90 % intervals", "outside the band"),
    ),
)

# What is compared ------------------------------------------------------------------------------------------------

_COMPARED = (
    Term(
        "guide",
        "guide",
        "q(z | x), the distribution that stands in for the exact posterior p(z | x). In a VAE it is the encoder with "
        "the family of distributions that it sets.",
        "guides.md",
    ),
    Term(
        "prior",
        "prior",
        "p(z), the distribution of z before an image is seen. Unless it is replaced, it is the model's own.",
        "guides.md",
    ),
    Term(
        "objective",
        "objective",
        "What training maximizes: the ELBO by default, or another bound such as IWAE's. It changes which weights are "
        "found, and not what the numbers of the table mean.",
        "objectives.md",
    ),
    Term(
        "KL warm-up",
        "kl-warm-up",
        "The weight of the KL term rises from 0 to 1 over the first epochs, so that z is not given up early. The "
        "evaluation always uses weight 1.",
        "training.md",
        ("--kl-warmup", "kl_warmup"),
    ),
    Term(
        "binarization",
        "binarization",
        "How grey pixels become 0 or 1. dynamic: drawn again at each use in training, one fixed draw for validation "
        "and test; static: one fixed draw; threshold: pixel > 0.5; none and dequantized: grey values. Numbers of "
        "different binarizations are not comparable.",
        "data.md",
    ),
    Term(
        "density",
        "density",
        "p(x) of continuous pixels, which may be above 1. It is never comparable with a probability of binary pixels. "
        "Grey values under a Bernoulli have no density: their cross-entropy is no bound of any log-probability.",
        "estimates.md#densities-and-grey-pixels",
        ("densities", "cross-entropy"),
    ),
    Term(
        "seed",
        "seed",
        "The number that fixes the initial weights, the order of the images and the noise. With one seed each, a "
        "difference between two runs is one between two sets of weights, not between two methods.",
        "compare.md",
        ("seeds",),
    ),
    Term(
        "paired difference",
        "paired-difference",
        "Δ: the mean over images of a row's value minus the first row's value of the same image. Its 95 % interval is "
        "in brackets: if 0 is in it, the difference may be chance.",
        "compare.md",
        ("Δ log p(x)", "Δ ELBO", "Δ"),
    ),
    Term(
        "last and best weights",
        "last-and-best-weights",
        "The weights after the last epoch, and those after the epoch with the best validation ELBO. The last ones are "
        "evaluated unless `--checkpoint best` is given.",
        "training.md",
        ("last weights", "best weights", "weights of the best epoch"),
    ),
    Term(
        "components in use",
        "components-in-use",
        "Components of a mixture that explain at least one of the evaluated images, by the sum of their posterior "
        "probabilities.",
        "uses.md",
        (),
    ),
    Term(
        "Fréchet distance",
        "fréchet-distance",
        "Distance between the samples' and the test images' mean and covariance, in the last layer of a classifier "
        "(Heusel et al. 2017). Smaller is better. It is biased upwards with few images, and a model that repeats its "
        "training images has a perfect score.",
        "samples.md",
    ),
    Term(
        "kernel distance",
        "kernel-distance",
        "Squared maximum mean discrepancy between the samples and the test images, in the last layer of a classifier "
        "(Bińkowski et al. 2018). Smaller is better, 0 is perfect. It is unbiased, so it may be below 0.",
        "samples.md",
    ),
    Term(
        "precision and recall",
        "precision-and-recall",
        "Precision: the share of samples that are no farther from some test image than its third neighbour is. "
        "Recall: the same with samples and test images exchanged (Kynkäänniemi et al. 2019). Low recall means that "
        "kinds of images are missing.",
        "samples.md",
        ("precision", "recall"),
    ),
)

TERMS: tuple[Term, ...] = (*_BOUND, *_ESTIMATES, *_TRUST, *_COMPARED)
"""All terms, in an order in which they can be read."""
