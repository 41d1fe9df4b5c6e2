"""From what `--weights` says to a file on this machine: a path, one that comes with the package, or a timm tag, from the hub's
cache or the hub."""

from __future__ import annotations

import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from flowers_bench.contract.dataset import DatasetSource
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.files import check_file, read_metadata
from flowers_bench.models.weights.provenance import provenance_of
from flowers_bench.models.weights.shipped import NAME, backbones, shipped_for
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import file_sha256


class NoNetwork(UsageError):
    """Weights are neither on this machine nor to be had from the network."""


#: Of every repository of timm's.
_FILE = "model.safetensors"
#: Seconds in which a hub that is there accepts a connection, its name's look-up included ...
_CONNECTS_IN = 3.0
#: ... and in which, once connected, it answers; the hub's own variable may say more.
_ANSWERS_IN = 30


def resolve_weights(asked: str, backbone: str) -> list[Weights]:
    """Find `none`, `petals`, `pretrained`, a timm tag or a file, as a file on this machine with its SHA-256.

    Returns:
        what may be meant, of which the first is used that fits the model: of `petals` there may be several.

    Raises:
        UsageError: no such file or tag, no weight file, or it cannot be downloaded; the text says what to do instead.
    """
    if asked == "none":
        return [Weights()]
    if asked == NAME and not Path(asked).is_file():
        found = shipped_for(backbone)
        if not found:
            raise UsageError(
                f"--weights {NAME}: there are none for backbone {backbone}. Valid: --backbone {', '.join(backbones())}."
            )
        return found
    try:
        path = Path(asked).expanduser()
        is_path = path.suffix in (".safetensors", ".pth", ".pt", ".bin") or "/" in asked or path.exists()
    except (OSError, RuntimeError) as error:  # a name too long for a file, a home that nobody has
        raise UsageError(f"--weights {asked[:200]}: {error}") from error
    if is_path:
        check_file(path)
        return [Weights(path.name, file_sha256(path), path.resolve(), provenance_of(path, read_metadata(path)))]
    return [_of_tag(asked, backbone)]


def weights_on(source: DatasetSource, said: str, backbone: str) -> str:
    """Give what a variant that says these weights starts from on a dataset: `pretrained` means the dataset's own, where it has
    some for the backbone."""
    own = source.weights == NAME and bool(shipped_for(backbone))
    return source.weights if said == "pretrained" and own else said


def cached_weights(backbone: str) -> Path | None:
    """Find timm's default weights of a network in the hub's cache on this machine; None if they are not there."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone)
    return _cached(config.hf_hub_id) if config is not None and config.has_weights and config.hf_hub_id else None


def hub_answers() -> bool:
    """Say whether the hub, from which weights are fetched, accepts a connection within seconds."""
    try:
        _refuse_unreachable()
    except OSError:
        return False
    return True


def _of_tag(tag: str, backbone: str) -> Weights:
    import timm
    from timm.models import get_pretrained_cfg

    name = backbone if tag == "pretrained" else tag if tag.startswith(f"{backbone}.") else f"{backbone}.{tag}"
    tags, own = timm.list_pretrained(f"{backbone}.*"), [NAME] if shipped_for(backbone) else []
    config = get_pretrained_cfg(name) if tag == "pretrained" or name in tags else None
    if config is None or not config.has_weights or not config.hf_hub_id:
        raise UsageError(
            f"--weights {tag}: timm has no such weights for {backbone}. Valid: {', '.join(['none', *own, *tags])}, or a file."
        )
    full = f"{config.architecture}.{config.tag}" if config.tag else backbone
    path = _cached(config.hf_hub_id) or _downloaded(config.hf_hub_id, full)
    return Weights(full, file_sha256(path), path)


def _cached(repository: str) -> Path | None:
    """Find the file in the hub's cache on this machine, without asking the network: its SHA-256 tells what it is."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, _FILE)
    return Path(found) if isinstance(found, str) else None


def _downloaded(repository: str, name: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        _refuse_unreachable()
        # Once, with an answer or an error; the download itself would ask six times before it says that nobody is there.
        get_hf_file_metadata(hf_hub_url(repository, _FILE), timeout=_patience())
        path = Path(hf_hub_download(repository, _FILE, etag_timeout=_patience()))
    except Exception as error:  # the hub raises a dozen kinds: connection, time-out, missing file, refused
        raise NoNetwork(_without_network(repository, name, error)) from error
    # The hub names the cached blob of a large file by its SHA-256.
    expected = path.resolve().name
    if len(expected) == 64 and expected != file_sha256(path):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise UsageError(
            f"weights {name}: the downloaded file has a wrong checksum and was removed. Run the command again."
        )
    return path


def _patience() -> int:
    from huggingface_hub import constants

    return max(_ANSWERS_IN, int(constants.HF_HUB_ETAG_TIMEOUT))


def _without_network(repository: str, name: str, error: Exception) -> str:
    from huggingface_hub import constants

    reason = (str(error).strip().splitlines() or [""])[0][:200]
    folder = f"models--{repository.replace('/', '--')}"
    return (
        f"weights {name} are not on this machine and could not be downloaded ({type(error).__name__}: {reason}). "
        "Without a network, say one of:\n"
        "  --weights none  to start from random weights\n"
        "  --weights FILE  to use a .safetensors or .pth file that you have. To get this one, on a machine with internet run\n"
        f"                  hf download {repository} {_FILE}  and copy the file here; or copy that machine's cache folder\n"
        f"                  {folder} into {constants.HF_HUB_CACHE}, and run this command again."
    )


def _refuse_unreachable() -> None:
    """Raise `OSError` unless the hub, or the proxy before it, accepts a connection within seconds.

    A name's look-up has no time limit of its own: hence the thread, which nobody waits for any longer.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    host, port = _first_host(constants.ENDPOINT)
    outcome: list[Exception | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECTS_IN).close()
            outcome.append(None)
        except (OSError, ValueError) as error:  # ValueError: not even a host's name
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECTS_IN)
    error = outcome[0] if outcome else TimeoutError("no answer within seconds")
    if error is not None:
        raise ConnectionError(f"{host}: {error}") from error


def _first_host(endpoint: str) -> tuple[str, int]:
    """Find the host and port that a request to `endpoint` connects to: its own, or the proxy's of the environment."""
    url = urllib.parse.urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and url.hostname and not urllib.request.proxy_bypass(url.hostname):
        url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
