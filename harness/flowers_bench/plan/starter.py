"""A starter set for a folder of photographs: networks whose weights are at hand, techniques that fit the data, and what they take.

What they take is computed from a short measurement: how fast this machine runs each network forward, and forward and back.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers_bench.contract.host import Host
from flowers_bench.data.pixels import stored_side
from flowers_bench.data.survey import Survey
from flowers_bench.models.backbones import Backbone, check_backbone, vision_transformer
from flowers_bench.models.network import bare_network
from flowers_bench.models.weights import Weights, shipped
from flowers_bench.models.weights.files import check_file
from flowers_bench.models.weights.source import cached_weights, hub_answers
from flowers_bench.plan.threads import at_once, threads_of_each
from flowers_bench.util.errors import UsageError
from flowers_bench.util.system import available_cores, load_average
from flowers_bench.util.text import counted

#: Networks that are looked for on this machine, the one preferred first, and fetched where none is here: small ones.
CONVOLUTIONAL = ("tf_efficientnet_lite0", "mobilenetv2_100", "resnet18", "resnet34", "resnet50", "convnext_tiny")
TRANSFORMERS = (
    "vit_small_patch14_dinov2",
    "vit_small_patch16_224",
    "deit_small_patch16_224",
    "vit_tiny_patch16_224",
    "vit_base_patch16_224",
)
#: The network whose weights come with the package, and the side of the images that they were trained on.
EMBEDDED, EMBEDDED_SIDE = "test_resnet", 64
#: Side of the images that other networks see, in pixels.
SIDE = 224
#: Fine-tuning is left out below so many training images of each class, on average.
FEWEST_TO_TUNE = 4
#: Seconds: a technique that would take longer here, all seeds together, is left out.
LONGEST = 3600.0
#: Seconds that each training takes beside its images on a machine that nobody else uses: its process starts. An estimate.
OVERHEAD = 5.0
#: Images that each training gives its network at the end, to measure how fast that is, at most: `measure.inference`.
MEASURING = 200
#: Seconds, and images at once, of a measurement.
_MEASURED, _BATCH = 1.0, 4


@dataclass(frozen=True)
class Network:
    """A network, and the weights that it starts from.

    Attributes:
        weights: as `--weights` takes it.
        origin: where they come from, in words.
        image_size: side of the images that it sees, in pixels.
        parameters: how many it has.
        transformer: whether it is a plain vision transformer.
        fetched: whether they are downloaded first.
    """

    backbone: str
    weights: str
    origin: str
    image_size: int
    parameters: int
    transformer: bool
    fetched: bool = False

    @classmethod
    def of(cls, backbone: str, weights: str, origin: str, image_size: int = SIDE, *, fetched: bool = False) -> Network:
        """Look at the network without values. Raises `UsageError` if timm has none of that name."""
        check_backbone(backbone)
        model = bare_network(backbone, image_size).model
        return cls(
            backbone,
            weights,
            origin,
            image_size,
            sum(parameter.numel() for parameter in model.parameters()),
            _is_transformer(model),
            fetched,
        )

    @property
    def bytes(self) -> int:
        """The size of its weights, in float32."""
        return 4 * self.parameters


@dataclass(frozen=True)
class Rates:
    """How fast a network's trials run on this machine, beside whatever else runs there.

    Attributes:
        forward, training: images per second of one trial: forward, and forward and back.
        at_once: how many trials run at once.
        slowdown: how many times as long as alone this process takes for what it computes.
    """

    forward: float
    training: float
    at_once: int = 1
    slowdown: float = 1.0


@dataclass(frozen=True)
class Starter:
    """A technique of the starter set.

    Attributes:
        label: `technique/variant`.
        seconds: what all seeds take, at most.
        why: what it is good for, in words.
    """

    label: str
    network: Network
    seconds: float
    why: str


@dataclass(frozen=True)
class StarterSet:
    """What is run, in the order of cost, and what is not.

    Attributes:
        left_out: what would take longer than `LONGEST`.
        notes: what is to be said about the choice.
        decoding: seconds to decode all photographs once.
        shared: seconds that several of `chosen` count, for features that are computed once.
        cache_bytes: what the decoded photographs take.
        store_bytes: what the trained networks take in the store, and a checkpoint beside them.
        download_bytes: what is fetched first.
    """

    chosen: tuple[Starter, ...]
    left_out: tuple[Starter, ...]
    notes: tuple[str, ...]
    decoding: float
    shared: float
    cache_bytes: int
    store_bytes: int
    download_bytes: int

    @property
    def seconds(self) -> float:
        """What all of it takes, at most."""
        return self.decoding + sum(one.seconds for one in self.chosen) - self.shared


def find_networks(weights: Sequence[str], backbone: str | None) -> list[Network]:
    """Find the networks to start from: one for each of the weights given, else what is on this machine or can be fetched, else
    what comes with the package.

    Args:
        weights: files, `petals`, `pretrained` or timm tags.
        backbone: the network of the only weights; None to read it from their file's name.

    Raises:
        UsageError: there is no such file or network, or a file's name does not tell its network.
    """
    if backbone and len(weights) > 1:
        raise UsageError(
            "--backbone goes with one --weights; several files are told by their names, MODEL.safetensors."
        )
    if weights:
        return [_named(one, backbone) for one in weights]
    if backbone:
        return [_at_hand([backbone], fetch=True) or _embedded(backbone)]
    found = [_at_hand(names, fetch=False) for names in (CONVOLUTIONAL, TRANSFORMERS)]
    if found[0] is None and found[1] is None:
        found[0] = _at_hand(CONVOLUTIONAL[:1], fetch=True)
    return [network for network in found if network is not None] or [_embedded(None)]


def _named(weights: str, backbone: str | None) -> Network:
    if weights == shipped.NAME:
        return _embedded(backbone)
    path = Path(weights).expanduser()
    if not path.exists() and not path.suffix:
        if backbone is None:
            raise UsageError(f"--weights {weights}: say the network too, --backbone resnet18; or name a file.")
        return Network.of(backbone, weights, f"timm's {weights}", fetched=cached_weights(backbone) is None)
    check_file(path)
    return Network.of(backbone or _network_of_file(path), weights, f"your file {path.name}")


def _network_of_file(path: Path) -> str:
    """Read the network from the file's name: the longest beginning that is a timm model."""
    import timm

    parts = re.split(r"(?=[.-])", path.name)
    for end in range(len(parts) - 1, 0, -1):
        name = "".join(parts[:end])
        if "." not in name and timm.is_model(name):
            return name
    raise UsageError(
        f"--weights {path}: its name does not tell the network. Say it: --backbone resnet18 (any timm model), or rename the file to "
        f"MODEL{path.suffix}, such as resnet18{path.suffix}."
    )


def _at_hand(names: Iterable[str], *, fetch: bool) -> Network | None:
    """Find the first network whose weights are on this machine; if there is none and it may be fetched, the first one that the
    hub would give."""
    names = list(names)
    for name in names:
        if cached_weights(name):
            return Network.of(name, "pretrained", "timm's, on this machine")
    if fetch and hub_answers():
        return Network.of(names[0], "pretrained", "timm's, to be downloaded", fetched=True)
    return None


def _embedded(backbone: str | None) -> Network:
    if backbone not in (None, EMBEDDED):
        raise UsageError(
            f"--backbone {backbone}: its weights are not on this machine and cannot be fetched. Give them, --weights FILE, or "
            f"leave --backbone out."
        )
    origin = "they come with the package, and know drawn flowers only"
    return Network.of(EMBEDDED, shipped.NAME, origin, EMBEDDED_SIDE)


def _is_transformer(model: object) -> bool:
    try:
        vision_transformer(model)  # type: ignore[arg-type]
    except UsageError:
        return False
    return True


def measure_rates(network: Network, classes: int, seeds: int) -> Rates:
    """Run the network on noise for a few seconds, forward, and forward and back, as a trial of so many seeds would.

    With that many threads: where other programs keep cores busy, two threads wait for each other at every layer, and a small
    network, whose trials have one, is up to a hundred times slower with two.
    """
    import torch

    from flowers_bench.training.process import choose_device, with_threads

    device = choose_device(None)
    jobs = at_once(seeds, network.parameters, network.image_size, None)
    with with_threads(threads_of_each(jobs) or torch.get_num_threads()):
        model = Backbone(network.backbone, Weights(), classes, network.image_size).create().to(device)
        images = torch.rand(_BATCH, 3, network.image_size, network.image_size, device=device)
        labels = torch.zeros(_BATCH, dtype=torch.long, device=device)

        def forward() -> None:
            with torch.inference_mode():
                model(images).sum().item()

        def step() -> None:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            loss.item()

        model.eval()
        ahead = _rate(forward)
        model.train()
        return Rates(ahead, _rate(step), jobs, _slowdown())


def _rate(run: Callable[[], None]) -> float:
    """Give images per second over a second of calls, at least one, after a first one that sets things up. The mean and not the
    quickest: other programs slow trials down as well."""
    run()
    calls, started, seconds = 0, time.perf_counter(), 0.0
    while seconds < _MEASURED:
        run()
        calls, seconds = calls + 1, time.perf_counter() - started
    return _BATCH * calls / seconds


def _slowdown() -> float:
    """Compute for half a second, and give that time through what this thread had of the processor."""
    started, used = time.perf_counter(), time.thread_time()
    while time.perf_counter() - started < _MEASURED / 2:
        pass
    return (time.perf_counter() - started) / max(time.thread_time() - used, 1e-3)


def choose(host: Host, survey: Survey, networks: Sequence[Network], rates: Sequence[Rates], seeds: int) -> StarterSet:
    """Choose techniques for these photographs and networks, and compute what they take."""
    every = [
        starter
        for place, (network, speed) in enumerate(zip(networks, rates, strict=True))
        for starter in _starters(host, survey, network, speed, seeds, first=place == 0)
    ]
    every.sort(key=lambda one: one.seconds)
    chosen = [one for one in every if one.seconds <= LONGEST or _frozen(one.label)]
    sides = {stored_side(network.image_size) for network in networks}
    cores = available_cores()
    tuned = [one for one in chosen if not _frozen(one.label)]
    largest = max(network.bytes for network in networks)
    shared = sum(
        survey.total / speed.forward * (sum(one.network == network and _frozen(one.label) for one in chosen) - 1)
        for network, speed in zip(networks, rates, strict=True)
    )
    return StarterSet(
        chosen=tuple(chosen),
        left_out=tuple(one for one in every if one not in chosen),
        notes=tuple(_notes(survey, networks)),
        decoding=len(sides) * survey.total * survey.seconds_to_decode / cores,
        shared=shared,
        cache_bytes=sum(survey.decoded_bytes(side) for side in sides),
        store_bytes=seeds * sum(one.network.bytes for one in tuned) + (4 * largest if tuned else 0),
        download_bytes=sum(network.bytes for network in networks if network.fetched),
    )


def _frozen(label: str) -> bool:
    return label.startswith(("knn/", "linear-probe/logistic"))


def _starters(
    host: Host, survey: Survey, network: Network, speed: Rates, seeds: int, *, first: bool
) -> Iterable[Starter]:
    features = survey.total / speed.forward
    rounds = math.ceil(seeds / speed.at_once)
    overhead = OVERHEAD * speed.slowdown + MEASURING / speed.forward
    frozen = features + rounds * overhead  # the first training keeps what frozen layers give, for all others
    if first:
        k = 5 if survey.fewest_to_train >= 5 else 1
        neighbours = "5 most similar photographs vote" if k == 5 else "most similar photograph decides"
        yield Starter(f"knn/k{k}", network, frozen, f"nothing is trained: the {neighbours}")
    yield Starter("linear-probe/logistic", network, frozen, "a linear classifier on what the network sees already")
    if survey.images["train"] >= FEWEST_TO_TUNE * survey.classes:
        label, why = ("transfer/k3", "fine-tuning, the first three stages frozen")
        if network.transformer:
            label, why = ("lora/qv", "a few numbers beside the frozen weights are trained")
        technique = host.find("technique", host.techniques, label.partition("/")[0]).value
        _, variant = technique.variant(label.partition("/")[2])
        epochs = technique.recipe.changed(**variant.recipe).epochs
        epoch = survey.images["train"] / speed.training + survey.images["val"] / speed.forward
        yield Starter(label, network, rounds * (epochs * epoch + features + overhead), why)


def _notes(survey: Survey, networks: Sequence[Network]) -> Iterable[str]:
    if any(network.weights == shipped.NAME for network in networks):
        yield (
            "no weights of photographs are on this machine, and none can be fetched: what comes with the package learned drawn flowers "
            "only, and does far worse than weights of photographs would. Get some: --weights FILE, or a network connection"
        )
    if survey.images["train"] < FEWEST_TO_TUNE * survey.classes:
        mean = survey.images["train"] / survey.classes
        yield f"fine-tuning is left out: there are {mean:.3g} training photographs of each class; from {FEWEST_TO_TUNE} on it is tried"
    (busy, *_), cores = load_average() or [0.0], available_cores()
    if busy > cores:
        yield f"other programs keep this machine busy (load {busy:.0f} on {counted(cores, 'core')}): alone it would be quicker"
    if survey.images["test"] < 100:
        yield (
            f"{counted(survey.images['test'], 'test photograph')} can tell large differences only; more photographs help more than "
            "more seeds"
        )
