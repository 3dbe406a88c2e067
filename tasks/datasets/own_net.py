"""A user's own network for `dataset.features`: a checkpoint with the net that takes it, or any function of images."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.store import sources
from tasks.datasets.backbones import KEY, Backbone, Images, file_digest, fill, named, resized, rgb, without
from tasks.datasets.errors import DataError

KEYS = ("net", "weights", "side", "mean", "std", "head")
PLAIN = (bool, int, float, str, bytes, type(None))


def checkpoint(setting: Mapping[str, Any]) -> Backbone:
    """The backbone of {net, weights, side, mean, std, head}: a torch checkpoint with the net that takes it.

    `net` is a library's name, which brings its preparation, or a torch.nn.Module that a `_target_` made. Its images are
    resized to `side`, scaled to (x / 255 - mean) / std and, if `mean` has three values, given three channels. `head` is
    the part of the net that is left out, such as fc.
    """
    if unknown := [k for k in setting if k not in KEYS]:
        raise ValueError(f"{KEY}.{unknown[0]}: unknown setting; the settings are {', '.join(KEYS)}, or _target_")
    net, weights = setting.get("net"), setting.get("weights")
    if net is None or weights is None:
        raise ValueError(f"{KEY}: needs net and weights, as in {KEY}={{net:resnet18,weights:FILE}}")
    file = Path(weights).expanduser()
    if not file.is_file():
        raise DataError(f"{KEY}.weights={weights}: file not found")
    if isinstance(net, str):
        if extra := [k for k in ("side", "mean", "std", "head") if setting.get(k) is not None]:
            raise ValueError(f"{KEY}.{extra[0]}: {net} brings its own preparation; leave {extra[0]} out")
        return named(net, file)
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"{KEY}.net: is a {type(net).__name__}; give a library's name or a _target_ of a torch.nn.Module"
        )
    prepare, name = preparation(**{k: setting.get(k) for k in ("side", "mean", "std")}), type(net).__name__
    head = setting.get("head")
    if head is not None and head not in dict(net.named_modules()):
        raise ValueError(f"{KEY}.head={head}: {name} has no such part; print(net) lists them")

    def load() -> Images:
        fill(net, file, name)
        body = (net if head is None else without(net, head)).eval()
        return lambda x: body(prepare(x))

    sha = file_digest(file)
    how = repr([structure(net), sha, [setting.get(k) for k in KEYS[2:]]])
    about = f"{name} with {file.name} ({sha[:8]})"
    return Backbone(name, about, hashlib.sha256(how.encode()).hexdigest(), (file,), load)


def preparation(side: int | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> Images:
    """Bytes [B, C, h, w] -> (x / 255 - mean) / std."""
    if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1):
        raise ValueError(f"{KEY}.side={side}: must be a whole number of at least 1, or null for the images' own")
    if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
        raise ValueError(f"{KEY}.mean={mean}, std={std}: give both, with one value for each channel")
    if std is not None and min(std) <= 0:
        raise ValueError(f"{KEY}.std={std}: must be above 0")
    m, s = (
        torch.tensor([float(v) for v in values or (default,)]).view(-1, 1, 1)
        for values, default in ((mean, 0), (std, 1))
    )

    def prepare(x: Tensor) -> Tensor:
        x = rgb(x) if len(m) == 3 else x
        return ((x.float() if side is None else resized(x, side)) / 255 - m) / s

    return prepare


def function(made: Callable[..., Any]) -> Backbone:
    """The backbone of what a `_target_` returned: a torch.nn.Module or any function of bytes [B, C, h, w].

    A module is identified by its tensors, its plain attributes and the files of its code; a function by the files of
    its code and the arguments that functools.partial holds. An object with a `digest` says itself what it is. Features
    of anything else are computed again in each run, and the line about the data says so.
    """
    name = getattr(made, "__name__", None) or type(made).__name__
    if isinstance(made, functools.partial):
        name = getattr(made.func, "__name__", name)
    if isinstance(made, nn.Module):
        made.eval()
    found = identity(made)
    digest = hashlib.sha256(found.encode()).hexdigest() if found else ""
    about = f"{name} ({digest[:8]})" if digest else f"{name}, not cached: it has no digest"
    return Backbone(name, about, digest, code(made) if digest else (), lambda: made)


def identity(made: Callable[..., Any]) -> str:
    """What determines a function's values, as text; "" if that is not known."""
    if (own := getattr(made, "digest", None)) is not None:
        return str(own)
    if isinstance(made, nn.Module):
        return structure(made) + "".join(f"{k}:{tensor_digest(v)};" for k, v in made.state_dict().items())
    given: list[Any] = []
    if isinstance(made, functools.partial):
        given, made = [list(made.args), sorted(made.keywords.items())], made.func
    free = inspect.isfunction(made) and not made.__closure__ and "<locals>" not in made.__qualname__
    return f"{made.__qualname__}{files_digest(made)}{given!r}" if free and plain(given) else ""


def structure(net: nn.Module) -> str:
    """A module's parts with their classes, plain attributes and the files of their code."""
    parts = []
    for name, part in net.named_modules():
        kept = {k: v for k, v in sorted(vars(part).items()) if not k.startswith("_") and k != "training" and plain(v)}
        parts.append(f"{name}={type(part).__module__}.{type(part).__qualname__}{kept!r}")
    own = {type(part) for part in net.modules() if not type(part).__module__.startswith("torch.")}
    return ";".join([*parts, *sorted(files_digest(kind) for kind in own)])


def plain(value: Any) -> bool:
    """Whether the text of a value says all about it."""
    if isinstance(value, (list, tuple, dict)):
        return all(map(plain, value)) and (not isinstance(value, dict) or all(map(plain, value.values())))
    return isinstance(value, PLAIN)


def tensor_digest(v: Tensor) -> str:
    data = v.detach().cpu().contiguous()
    return f"{data.dtype}{list(data.shape)}{hashlib.sha256(data.flatten().view(torch.uint8).numpy().data).hexdigest()}"


def files_digest(made: Any) -> str:
    """Digest of the user's files that this object's module is, or imports."""
    found = sources.files([getattr(made, "__module__", "")])
    return sources.digest({k: v for k, v in found.items() if k.partition(".")[0] not in sources.OURS})


def code(made: Any) -> tuple[Path, ...]:
    """The file of an object's code."""
    inner = made.func if isinstance(made, functools.partial) else made
    try:
        return (Path(inspect.getfile(inner if inspect.isroutine(inner) else type(inner))),)
    except (TypeError, OSError):  # built in, or typed in a notebook
        return ()
