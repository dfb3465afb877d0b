"""What does a served token cost, and on how many chips is it cheapest?

The cost of Yun et al. 2024 (arXiv 2404.02852): as many requests at once as memory holds beside the weights; a step of
the server decodes one token of each and reads the prompts of those that take the place of finished ones; cost is chips
times price over output tokens per second, least over the number of chips. Their profile of an engine is replaced by a
roofline on published figures of the chip, which one measured or stated throughput may scale.

Memory is in bytes throughout: the paper's formula adds weights and cached keys in units it does not state.

A forward pass takes the longer of its products and its reading from memory, and then the all-reduces of its activations
(two a layer), since weights are split over the chips of a server. Left out: FLOPs of attention scores, writes to the
cache, memory for activations, and waiting. Everything in a figure per token falls with the batch, so the largest that
fits is the cheapest.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from chinchilla_jax.base.chips import CHIPS, GIB
from chinchilla_jax.base.config_values import did_you_mean
from chinchilla_jax.scaling.read.runs import FitRefused

TOKENS = 1e6  # that a cost is stated for
_HOUR = 3600.0
_LARGEST = 256  # chips of one server


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Requests on average: tokens of a `prompt`, and of its `output`. Refused (`question`) unless both are positive."""

    prompt: float
    output: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < np.inf:
                raise FitRefused("question", f"--serve={name}:{value:g} must be a positive number of tokens")

    @property
    def cached(self) -> float:
        """Tokens of a request whose keys and values are kept, on average over its time: prompt + output / 2."""
        return self.prompt + 0.5 * self.output


@dataclasses.dataclass(frozen=True)
class Served:
    """A model as a server sees it; fields are numbers or arrays [...] of one shape.

    `always`: bytes of the weights that every token reads; `routed`: bytes of all experts; `used`: the share K / E of
    the experts that one token uses; `active`: how many weights a token is multiplied with; `cache`: bytes of keys and
    values of one token; `exchanged`: bytes of the activations of one token that chips sum, in all layers together.
    """

    always: np.ndarray
    routed: np.ndarray
    used: np.ndarray
    active: np.ndarray
    cache: np.ndarray
    exchanged: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Bytes of all weights [...]."""
        return self.always + self.routed

    def touched(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes of weights that a pass over `tokens` reads, if each token chooses its experts evenly and for itself."""
        return self.always + self.routed * (1.0 - (1.0 - self.used) ** tokens)


@dataclasses.dataclass(frozen=True)
class Server:
    """Chips of one kind. Of each: `flops` FLOP/s, `memory` bytes, `bandwidth` bytes/s of it, `links` bytes/s of all its
    links one way. `largest`: the most chips of one server; `price` of a chip for an hour; `efficiency`: throughput over
    that of the roofline."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float
    largest: int
    price: float = 1.0
    efficiency: float = 1.0

    @property
    def counts(self) -> np.ndarray:
        """Chips that a server may have, powers of two [G]."""
        return 2.0 ** np.arange(int(self.largest).bit_length())


def server_of(chip: str, price: float = 1.0, largest: float | None = None) -> Server:
    """A server of chips of this name, with the published figures of `base.chips`; of one chip where its links are not
    known. `largest` lowers the number of chips, by default 256 or the largest slice.

    FitRefused `chip`: unknown, or its memory or bandwidth is; `question`: a price or number of chips not above 0.
    """
    if chip not in CHIPS:
        raise FitRefused("chip", f"--chip={chip}: unknown{did_you_mean(chip, CHIPS)}; one of {', '.join(CHIPS)}")
    known = CHIPS[chip]
    if known.hbm is None or known.hbm_bandwidth is None:
        usable = ", ".join(name for name, other in CHIPS.items() if other.hbm and other.hbm_bandwidth)
        raise FitRefused("chip", f"--chip={chip}: its memory and bandwidth are not known; they are of {usable}")
    for flag, value in (("price", price), ("serve=most_chips", 1 if largest is None else largest)):
        if not 0 < value < np.inf:
            raise FitRefused("question", f"--{flag} must be above 0, not {value:g}")
    slices = known.slices.largest if known.slices else None
    most = 1 if known.network is None else min(_LARGEST, slices or _LARGEST)
    links = known.network.links * known.network.link_bandwidth if known.network else np.inf
    memory = known.hbm * GIB
    return Server(chip, known.peak, memory, known.hbm_bandwidth, links, int(min(most, largest or most)), price)


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a model is served most cheaply; numbers or arrays [...]. `chips` of a server, `batch` requests at once,
    `rate` output tokens/s of the server, `cost` of a million output tokens: infinite where no server holds the model.
    """

    chips: np.ndarray
    batch: np.ndarray
    rate: np.ndarray
    cost: np.ndarray


def requests(model: Served, traffic: Traffic, server: Server, chips: np.ndarray | float) -> np.ndarray:
    """How many requests the memory of `chips` holds beside the weights, [...]; not above 0 where it holds none."""
    return (chips * server.memory - model.weights) / (model.cache * traffic.cached)


def pass_seconds(
    model: Served, tokens: np.ndarray | float, cached: np.ndarray | float, server: Server, chips: np.ndarray | float
) -> np.ndarray:
    """Seconds of a forward pass over `tokens` that reads `cached` bytes of earlier keys and values, at the roofline."""
    products = 2.0 * model.active * tokens / (chips * server.flops)
    memory = (model.touched(np.asarray(tokens)) + cached) / (chips * server.bandwidth)
    sent = 2.0 * (chips - 1.0) / chips * model.exchanged * tokens  # of an all-reduce over a ring, by each chip
    return np.maximum(products, memory) + sent / server.links


def throughput(
    model: Served, traffic: Traffic, server: Server, chips: np.ndarray | float, batch: np.ndarray | float
) -> np.ndarray:
    """Output tokens/s [...] of a server of `chips` with `batch` requests at once.

    A step decodes `batch` tokens; batch / output requests end in it, and as many prompts are read. Fewer than one
    prompt a step is one prompt in some of the steps.
    """
    batch = np.asarray(batch, np.float64)
    prompts = batch / traffic.output
    reading = pass_seconds(model, traffic.prompt * np.maximum(prompts, 1.0), 0.0, server, chips)
    decoding = pass_seconds(model, batch, batch * model.cache * traffic.cached, server, chips)
    return server.efficiency * batch / (np.minimum(prompts, 1.0) * reading + decoding)


def cost_of(rate: np.ndarray, server: Server, chips: np.ndarray | float) -> np.ndarray:
    """The price of a million output tokens at `rate` tokens/s of `chips`."""
    return TOKENS / rate * server.price * chips / _HOUR


def cheapest(model: Served, traffic: Traffic, server: Server) -> Serving:
    """The number of chips at which a token costs least, and what that gives [...]."""
    wide = Served(*(np.asarray(value, np.float64)[..., None] for value in vars(model).values()))
    chips = server.counts
    batch = requests(wide, traffic, server, chips)
    fits = batch >= 1.0
    rate = throughput(wide, traffic, server, chips, np.where(fits, batch, 1.0))
    cost = np.where(fits, cost_of(rate, server, chips), np.inf)
    best = cost.argmin(-1)[..., None]
    every = (np.broadcast_to(chips, cost.shape), batch, rate, cost)
    return Serving(*(np.take_along_axis(values, best, -1)[..., 0] for values in every))


def scaled_to(server: Server, model: Served, traffic: Traffic, rate: float, chips: float) -> Server:
    """The server with the efficiency at which `chips` of it give `rate` output tokens/s with this model and traffic.

    FitRefused `throughput`: the model does not fit these chips, or the rate is above the roofline.
    """
    batch = float(requests(model, traffic, server, chips))
    if not (batch >= 1.0 and chips >= 1.0):
        raise FitRefused("throughput", f"--throughput: the model stated does not fit {chips:g} {server.name} chips")
    most = float(throughput(model, traffic, dataclasses.replace(server, efficiency=1.0), chips, batch))
    if not 0.0 < rate <= most:
        words = f"{chips:g} {server.name} chips give at most {most:.4g} tokens/s with this model and traffic"
        raise FitRefused("throughput", f"--throughput: {rate:g} tokens/s of output; {words}")
    return dataclasses.replace(server, efficiency=rate / most)
