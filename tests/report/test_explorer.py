"""The explorer in a run's page: its decoder against the model's, and its script, as node and a browser run it, against
both."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_gen import fit
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.models.factor_analysis import FactorAnalysis
from ppl_gen.models.gan import GAN
from ppl_gen.models.vae import VAE
from ppl_gen.networks.nets import ACTIVATIONS
from ppl_gen.report import page
from ppl_gen.report.explorer import LIMIT, explorer, find_decoder, mean_image, read_layers
from ppl_gen.report.run_page import report

Call = Callable[..., tuple[int, str, str]]
SCRIPT = Path(page.__file__).with_name("explorer.js")
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
with_node = pytest.mark.skipif(NODE is None, reason="no node")
with_browser = pytest.mark.skipif(BROWSER is None, reason="no browser")

DIGITS = load_data(DataOptions(data="digits", binarization="none"))
SIZE = 5


def normalized_gan(shape: tuple[int, ...] = (8, 8), **options: Any) -> GAN:
    """A generator whose batch normalization has statistics, and weights, of its own."""
    gan = GAN(shape, **options)
    for module in gan.generator:
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(20):
        gan.generator(gan.prior().sample((100,)))
    return gan.eval()


def models() -> dict[str, nn.Module]:
    """Every output, every activation, batch normalization; unfitted, but with weights that reach all grey levels."""
    made: dict[str, nn.Module] = {}
    for output in ("bernoulli", "normal", "continuous-bernoulli"):
        made[output] = VAE((8, 8), DIGITS.mean(), latent_dim=SIZE, hidden_dims=(9, 16), likelihood=output)
    for name in ACTIVATIONS:
        made[name] = VAE((8, 8), latent_dim=SIZE, hidden_dims=(16, 9), activation=name)
    for model in made.values():
        for parameter in model.parameters():
            parameter.data.mul_(2)
    made["gan"] = normalized_gan(latent_dim=SIZE, hidden_dims=(16, 9))
    examples = DIGITS.train.pixels()
    return {**made, "factor-analysis": FactorAnalysis(64, examples, examples.mean(0), latent_dim=SIZE)}


@pytest.fixture(scope="session")
def described() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Each model with what it would have in its page; the first has means and labels of test images, too."""
    torch.manual_seed(0)
    found = {}
    with torch.no_grad():
        for index, (name, model) in enumerate(models().items()):
            means = None if index else 2 * torch.randn(300, SIZE)
            content = explorer(model, DIGITS.shape, range(SIZE), means, DIGITS.test.labels)
            assert content is not None, name
            found[name] = (model, content)
    return found


# In Python -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_decoder_is_the_models(described: dict[str, tuple[nn.Module, dict[str, Any]]]) -> None:
    z = 2 * torch.randn(200, SIZE)
    for name, (model, _) in described.items():
        layers = find_decoder(model, z[:50])
        assert layers is not None
        difference = (mean_image(layers, z) - model.likelihood(z).mean).abs()
        assert difference.max() < 1e-5, name
        assert difference.median() < 1e-6


@torch.no_grad()
def test_continuous_bernoulli_against_its_integral() -> None:
    logits = torch.tensor([-12.0, -1.0, -2e-3, -5e-4, 0.0, 5e-4, 2e-3, 1.0, 12.0]).double()
    model = _Model(nn.Sequential(nn.Linear(1, 1)), lambda output: dist.ContinuousBernoulli(logits=output))
    model.net[0].weight.data.fill_(1)
    model.net[0].bias.data.zero_()
    layers = find_decoder(model, torch.linspace(-3, 3, 50).unsqueeze(1))
    assert layers is not None and layers[-1].activation == "continuous-bernoulli"
    x = (torch.arange(100_000).double() + 0.5) / 100_000
    density = (logits.unsqueeze(1) * x).exp()
    mean = (density * x).sum(1) / density.sum(1)
    torch.testing.assert_close(mean_image(layers, logits.unsqueeze(1))[:, 0], mean, rtol=0, atol=1e-7)


@torch.no_grad()
def test_what_rounding_moves_is_told(described: dict[str, tuple[nn.Module, dict[str, Any]]]) -> None:
    for name, (model, content) in described.items():
        clouds = [content[key] for key in ("draws", "means") if key in content]
        z = torch.cat([_cloud(each) for each in clouds])
        assert len(z) == content["rounding"]["images"] == (500 if name == "bernoulli" else 200)
        shown = mean_image(read_layers(content["layers"]), z).clamp(0, 1)
        difference = 255 * (model.likelihood(z.float()).mean.clamp(0, 1) - shown).abs()
        assert 0 < content["rounding"]["largest"] < 12
        assert float(difference.max()) == pytest.approx(content["rounding"]["largest"], abs=0.01), name
        assert float(difference.mean()) == pytest.approx(content["rounding"]["mean"], abs=0.01)


def _cloud(packed: dict[str, str]) -> Tensor:
    """[n, size]."""
    (layer,) = read_layers([{**packed, "bias": "", "activation": "identity", "slope": 0.0}])
    return layer.weight.T


@torch.no_grad()
def test_what_z_there_is(described: dict[str, tuple[nn.Module, dict[str, Any]]]) -> None:
    _, content = described["bernoulli"]
    torch.manual_seed(0)
    for cloud in (content["draws"], content["means"]):
        z = _cloud(cloud)
        assert (z > torch.tensor(content["low"])).all() and (z < torch.tensor(content["high"])).all()
    assert content["labels"] == DIGITS.test.labels.tolist() and len(_cloud(content["means"])) == 300
    _, content = described["gan"]
    assert content["labels"] is None and "means" not in content
    assert all(2 < high < 5 and -5 < low < -2 for low, high in zip(content["low"], content["high"], strict=True))


@pytest.mark.parametrize("cls", [VAE, GAN])
@torch.no_grad()
def test_the_default_decoders_fit(cls: type) -> None:
    model = cls((28, 28)).eval()
    size = len(model.prior_loc)
    means = torch.randn(2000, size)
    content = explorer(model, (28, 28), range(size), means, torch.zeros(2000))
    assert content is not None
    assert len(json.dumps(content["layers"])) < LIMIT
    assert len(json.dumps(content)) < LIMIT + 180_000


class _Model(nn.Module):
    def __init__(self, net: nn.Module, output: Callable[[Tensor], Any]):
        super().__init__()
        self.net, self.output = net, output

    def prior(self) -> dist.Distribution:
        return dist.Normal(torch.zeros(next(iter(self.parameters())).shape[1]), 1.0).to_event(1)

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return self.output(self.net(z)).to_event(1)


def _of_logits(output: Tensor) -> dist.Distribution:
    return dist.Bernoulli(logits=output)


@torch.no_grad()
def test_decoders_of_ones_own() -> None:
    """Whatever its name, if it is a chain of known layers, or affine."""
    nets: list[nn.Module] = [
        nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.BatchNorm1d(8, affine=False), nn.ELU(0.3), nn.Linear(8, 64)),
        nn.Sequential(nn.Linear(3, 64, bias=False), nn.Sigmoid()),
        nn.Linear(3, 64),
    ]
    outputs = (_of_logits, lambda output: dist.Normal(output, 1.0), lambda output: dist.Normal(output, 1.0))
    for net, output in zip(nets, outputs, strict=True):
        model = _Model(net, output).eval()
        assert explorer(model, (8, 8), range(3), None, None) is not None


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 64)),
        nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 64)),
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Tanh(), nn.Linear(8, 64)),
        nn.Sequential(nn.Linear(3, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 64)),
        nn.Sequential(nn.Linear(3, 8), nn.Softplus(beta=2), nn.Linear(8, 64)),
        nn.Sequential(nn.Linear(3, 4000), nn.ReLU(), nn.Linear(4000, 64), nn.ReLU(), nn.Linear(64, 9000)),
    ],
)
@torch.no_grad()
def test_others_have_none(net: nn.Module) -> None:
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    assert explorer(_Model(net, _of_logits).eval(), (8, 8), range(3), None, None) is None


@torch.no_grad()
def test_convolutions_have_none() -> None:
    assert explorer(VAE((8, 8), latent_dim=3, network="conv"), (8, 8), range(3), None, None) is None
    assert explorer(GAN((8, 8), latent_dim=3, network="conv").eval(), (8, 8), range(3), None, None) is None


# The script ----------------------------------------------------------------------------------------------------


def in_node(script: str, folder: Path) -> Any:
    """The JSON that a script, after the explorer's own, has put into `result`."""
    assert NODE is not None
    file = folder / "script.js"
    file.write_text(f"{SCRIPT.read_text(encoding='utf-8')}\n{script}\nconsole.log(JSON.stringify(result));")
    done = subprocess.run([NODE, str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_browser(text: str, folder: Path) -> str:
    """The text that a page has in its element `result` when its scripts are done."""
    assert BROWSER is not None
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    options += ["--disable-component-update", "--virtual-time-budget=20000", "--window-size=1280,1000", "--dump-dom"]
    command = [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return html.unescape(found[1])


EVALUATE = """
const result = cases.map(({ layers, z }) => {
  const decode = decoder(layers);
  return z.map((each) => Array.from(decode(Float64Array.from(each))));
});"""


@pytest.mark.parametrize("engine", [pytest.param("node", marks=with_node), pytest.param("browser", marks=with_browser)])
@torch.no_grad()
def test_the_script_decodes_as_python_does(
    described: dict[str, tuple[nn.Module, dict[str, Any]]], tmp_path: Path, engine: str
) -> None:
    """The same rounded weights, in float64 here and there, to 1e-9; a grey level is 1/255."""
    z = 2 * torch.randn(20, SIZE)
    z[0] = 0
    cases = json.dumps([{"layers": content["layers"], "z": z.tolist()} for _, content in described.values()])
    script = f"const cases = {cases};{EVALUATE}"
    if engine == "node":
        result = in_node(script, tmp_path)
    else:
        show = 'document.getElementById("result").textContent = JSON.stringify(result);'
        scripts = f"<script>{SCRIPT.read_text(encoding='utf-8')}</script><script>{script}{show}</script>"
        result = json.loads(in_browser(f'<!DOCTYPE html><pre id="result"></pre>{scripts}', tmp_path))
    for (name, (_, content)), images in zip(described.items(), result, strict=True):
        ours = mean_image(read_layers(content["layers"]), z)
        assert (torch.tensor(images, dtype=torch.float64) - ours).abs().max() < 1e-9, name
        assert ours.std() > 0.1  # so that there is something to agree on


@with_node
def test_the_script_draws_grey_and_color(tmp_path: Path) -> None:
    """Grey is ink on paper: 0 is white. Of three channels, each is a color: 0 is black."""
    script = "const result = [rgba([0, 0.2, 1], 3), rgba([0, 1, 0.2, 0.4, 0.6, 1], 2)];"
    grey, color = (np.asarray(each).round().reshape(-1, 4).tolist() for each in in_node(script, tmp_path))
    assert grey == [[255, 255, 255, 255], [204, 204, 204, 255], [0, 0, 0, 255]]
    assert color == [[0, 51, 153, 255], [255, 102, 255, 255]]


# Each step tells z and the grey levels of the canvas, once it has been drawn.
STEPS = """
const $ = (selector) => document.querySelector(selector);
const plane = $(".plane"), handle = $(".handle"), image = $("canvas.image"), seen = { errors };
const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
const pointer = (kind, across, up) => {
  const box = plane.getBoundingClientRect();
  const at = { clientX: box.left + across * box.width, clientY: box.bottom - up * box.height };
  plane.dispatchEvent(new PointerEvent(kind, { pointerId: 1, bubbles: true, cancelable: true, ...at }));
};
const key = (name) => handle.dispatchEvent(new KeyboardEvent("keydown", { key: name, cancelable: true }));
const press = (text) => [...document.querySelectorAll("button")].find((each) => each.textContent === text).click();
const steps = {
  start: () => {},
  drag: () => { pointer("pointerdown", 0.5, 0.5); pointer("pointermove", 0.8, 0.25); pointer("pointerup", 0.8, 0.25);
    pointer("pointermove", 0.1, 0.1); },
  beyond: () => { pointer("pointerdown", 0.5, 0.5); pointer("pointermove", 3, -3); pointer("pointerup", 3, -3); },
  keys: () => { key("ArrowLeft"); key("ArrowUp"); key("ArrowUp"); },
  slider: () => {
    const input = $(".unit:not([hidden]) input");
    input.value = 1.5;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  },
  zero: () => press("z = 0"),
  prior: () => press("z from the prior"),
  nearest: () => press("nearest test image"),
  units: () => {
    const select = $(".axes select");
    select.value = explorer.units[1];
    select.dispatchEvent(new Event("change"));
  },
};
(async () => {
  for (const [name, act] of Object.entries(steps)) {
    act();
    await drawn();
    const { data } = image.getContext("2d").getImageData(0, 0, image.width, image.height);
    seen[name] = {
      z: Array.from(explorer.z), units: [...explorer.units], grey: Array.from(data).filter((_, i) => i % 4 === 0),
      text: handle.getAttribute("aria-valuetext"), shown: document.querySelectorAll(".unit:not([hidden])").length,
    };
  }
  await new Promise((done) => setTimeout(done, 500));
  seen.status = $(".status").textContent;
  document.body.insertAdjacentHTML("beforeend", "<pre id=result></pre>");
  $("#result").textContent = JSON.stringify(seen);
})();"""


@with_browser
def test_a_page_by_hand(elsewhere: Path, call: Call, tmp_path: Path) -> None:
    """Point, keys, sliders, buttons and choices of a run's own page move z, and the picture is Python's, rounded to 255
    levels of grey."""
    options = ("--data", "digits", "--train-size", "300", "--epochs", "3", "--num-samples", "30", "--latent-dim", "4")
    status, _, err = call(fit.command, "vae", *options, "--hidden-dims", "32", "--out", "run")
    assert status == 0, err
    run = RunDirectory.open(Path("run"))
    content = run.read_json("explorer.json")
    assert content is not None
    text = report(run)
    # The browser's virtual time runs ahead of its frames, and would be up before they are drawn.
    first = (
        "<script>const errors = []; onerror = (text) => errors.push(text);"
        "requestAnimationFrame = (draw) => setTimeout(draw, 16);</script>"
    )
    stranger = "<script>errors.push('a script that the policy of the page does not name')</script>"
    changed = text.replace("<body>", f"<body>{first}{stranger}")
    changed = changed.replace("</body>", f"<script>{STEPS}</script></body>")
    for script in (re.sub("</?script>", "", first), STEPS):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        changed = changed.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    seen = json.loads(in_browser(changed, tmp_path))
    assert seen.pop("errors") == []
    nearest = r"the nearest posterior mean, of test image \d+ \(label \d\), is 0\.00 away"
    assert re.fullmatch(rf"\|z\| = \d\.\d\d; {nearest}", seen.pop("status"))

    layers, order, low, high = (content[key] for key in ("layers", "order", "low", "high"))
    assert {step["shown"] for step in seen.values()} == {2} and seen["start"]["units"] == order[:2]
    for name, step in seen.items():
        mean = mean_image(read_layers(layers), torch.tensor([step["z"]], dtype=torch.float64))[0].clamp(0, 1)
        assert (torch.tensor(step["grey"]) - (255 - 255 * mean)).abs().max() < 0.5 + 1e-6, name
        assert step["text"] == ", ".join(f"z[{unit}] {step['z'][unit]:.2f}" for unit in step["units"])
    across, up = order[:2]

    def at(unit: int, share: float) -> float:
        return low[unit] + share * (high[unit] - low[unit])

    start, drag, keys = (seen[name]["z"] for name in ("start", "drag", "keys"))
    assert (drag[across], drag[up]) == (pytest.approx(at(across, 0.8)), pytest.approx(at(up, 0.25)))
    assert [drag[unit] for unit in order[2:]] == [start[unit] for unit in order[2:]]
    assert (seen["beyond"]["z"][across], seen["beyond"]["z"][up]) == (high[across], low[up])
    assert (keys[across], keys[up]) == (pytest.approx(at(across, 0.98)), pytest.approx(at(up, 0.04)))
    assert seen["slider"]["z"] == [1.5 if unit == order[2] else keys[unit] for unit in range(4)]
    assert seen["zero"]["z"] == [0, 0, 0, 0]
    for name, cloud in (("prior", "draws"), ("nearest", "means"), ("start", "means")):
        distances = (_cloud(content[cloud]) - torch.tensor(seen[name]["z"], dtype=torch.float64)).norm(dim=1)
        assert distances.min() < 1e-9, name
    drawn = torch.tensor(seen["prior"]["z"], dtype=torch.float64)
    means = _cloud(content["means"])
    torch.testing.assert_close(
        torch.tensor(seen["nearest"]["z"], dtype=torch.float64), means[(means - drawn).norm(dim=1).argmin()]
    )
    assert seen["units"]["units"] == [up, across] and seen["units"]["z"] == seen["nearest"]["z"]
    assert len({tuple(step["grey"]) for step in seen.values()}) >= 7  # the last step moves nothing


def test_the_script_asks_nobody() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    for word in (
        "fetch",
        "XMLHttpRequest",
        "WebSocket",
        "sendBeacon",
        "import",
        "eval(",
        "Function(",
        "http",
        "innerHTML",
    ):
        assert word not in script
    assert "</" not in script and "<!--" not in script
