"""Wrong command lines and damaged results folders, many of them, in one process with limits.

python -m tests.fuzz lines 300      prints a line of JSON for each: what was tried, its exit code, what is wrong
python -m tests.fuzz folders 300
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness.config import catalogue

SEED = 20
PATIENCE = 10  # seconds of this process that an answer may take
WAIT = 60  # seconds by the clock: it waits for something, and the machine may be busy
MEMORY = 6 * 2**30  # bytes of address space beyond those at the start
BASE = ("tasks.n_tasks=2", "train.steps=2", "seeds=[0,1]", "threads=1", "tracker.mode=disabled", "metrics=fast")


class Slow(BaseException):
    """No answer in time."""


class Trained(ValueError):
    """Everything was accepted; training itself is left out."""


def _late(number: int, frame: object) -> None:
    raise Slow


def answer(*argv: str, patience: float = PATIENCE, wait: float = WAIT) -> dict[str, Any]:
    """What a command line does in this process: exit code, standard error, and what is wrong about it, if anything."""
    out, err, wrong, code = io.StringIO(), io.StringIO(), "", None
    began, path = time.monotonic(), list(sys.path)
    timers = {signal.SIGALRM: (signal.ITIMER_REAL, wait), signal.SIGPROF: (signal.ITIMER_PROF, patience)}
    for number, (timer, most) in timers.items():
        signal.signal(number, _late)
        signal.setitimer(timer, most)
    sys.argv = ["harness", *argv]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main()
    except Slow:
        wrong = "slow"
    except BaseException as error:
        wrong = f"traceback: {type(error).__name__}: {str(error)[:200]} {_where(error)}"
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        sys.path[:] = path
    said = err.getvalue()
    if "Traceback" in said:
        wrong = f"traceback: {said[-1500:]}"
    elif not wrong and "Warning: " in said:
        wrong = f"a library's warning: {said[:300]}"
    elif not wrong and code not in (0, 1, 2):
        wrong = f"exit code {code}"
    elif (
        not wrong and code == 2 and not said.startswith("harness: ") and "warning: " not in said and not out.getvalue()
    ):
        wrong = f"no reason: {said[:200]!r}"
    seconds = round(time.monotonic() - began, 2)
    return {"typed": list(argv), "code": code, "err": said[:300], "wrong": wrong, "seconds": seconds}


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by the digest of its bytes; links and special files by what they are."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = f"link {os.readlink(path)}" if path.is_symlink() else "folder" if path.is_dir() else ""
        if not kind:
            kind = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "special"
        found[str(path.relative_to(folder))] = kind
    return found


# --- command lines ------------------------------------------------------------------------------------

VALUES = ("", "null", "[", "]", "[]", "{}", "{a:1}", "{a:", "()", "1e999", "nan", "-inf", "-1", "0", "1.5", "true",
          "9" * 25, "-" + "9" * 25, "1e300", "2147483648", "1000000000", "é", "💥", "\u202e", "'", '"', "\\", "a b",
          "${x}", "${oc.env:NOWHERE}", "${hydra:x}", "a=b", "~", "/nowhere/at/all", "../..", "x" * 5000, "[1,[2]]",
          "[a,b", "a,b", "1,2", "glob(*)", "range(1,3)", "choice(1)", "int(x)", "\n", "\t", "_target_", "os.system",
          "[nan]", "[1e400]", "[9999999999999999999999]", "[-1]", "[null]", "['']", "0x1G", "${train}")  # fmt: skip
FILES = (
    "dataset=npz dataset.path=nowhere.npz", "dataset=csv dataset.path=nowhere.csv dataset.label=x", "dataset=folder",
    "dataset=folder dataset.path=nowhere", "dataset=parquet dataset.path=. dataset.label=x", "--config-dir nowhere",
    "--config-dir /dev/null", "--config-name nowhere", "--config-path nowhere strategy=ewc", "leaderboard nowhere",
    "report nowhere", "sync nowhere", "tune nowhere", "explain nowhere", "card nowhere", "atlas nowhere",
    "merge nowhere", "merge x --with nothing",
    "measure nowhere metrics=fast", "show nowhere", "catalogue nowhere", "check strategy=nowhere", "new strategy ''",
    "dataset=function dataset.make._target_=nowhere.make", "dataset=npz", "dataset=csv dataset.path=/dev/zero",
    "leaderboard --out", "atlas x --points -1", "atlas x --points 99999999999999999999", "card", "show", "measure",
)  # fmt: skip

WORDS = ("leaderboard", "ls", "report", "tune", "card", "help", "-m", "--cfg", "job", "--help", "check", "new",
         "explain", "--version", "-h", "--info", "sync", "show")  # fmt: skip


def _misspelt(word: str, draw: random.Random) -> str:
    """One character dropped, doubled, swapped or replaced."""
    i = draw.randrange(len(word))
    return draw.choice([word[:i] + word[i + 1 :], word[:i] + word[i] * 2 + word[i + 1 :],
                        word[:i] + draw.choice("=[],.~+*{}'é💥 ") + word[i + 1 :],
                        word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]])  # fmt: skip


def lines(count: int, draw: random.Random) -> Iterator[list[str]]:
    """Wrong command lines, most of them near right ones."""
    from harness.config.preflight import composed, dotted

    chosen = [draw.choice(list(catalogue.options("strategy"))) for _ in range(6)]
    options = {g: [o for o in catalogue.options(g) if o not in ("avalanche",)] for g in catalogue.GROUPS}
    keys = sorted({k for s in chosen for k in dotted(composed([f"strategy={s}"]))})
    for i in range(count):
        strategy = f"strategy={draw.choice(chosen)}"
        key = draw.choice(keys)
        own = [f"strategy={key.split('.')[1]}"] if key.startswith("strategy.") else [strategy]
        kind = i % 8
        if kind == 0:
            yield [*own, f"{key}={draw.choice(VALUES)}"]
        elif kind == 1:
            yield [*own, _misspelt(f"{key}=1", draw)]
        elif kind == 2:
            group = draw.choice(list(options))
            yield [_misspelt(f"{group}={draw.choice(options[group])}", draw)]
        elif kind == 3:
            yield [strategy, *(f"{draw.choice(keys)}={draw.choice(VALUES)}" for _ in range(draw.randint(1, 4)))]
        elif kind == 4:
            yield draw.choice(FILES).split(" ")
        elif kind == 5:
            yield [*draw.sample(WORDS, 2), *([strategy] if draw.random() < 0.5 else [])]
        elif kind == 6:
            yield ["-m", f"strategy={draw.choice(chosen)},{draw.choice(VALUES)}", f"{key}={draw.choice(VALUES)}"]
        else:
            text = "".join(draw.choice("abé💥=[]{}(),.~+*'\"\\ \n\t$:/-_1") for _ in range(draw.randint(1, 20)))
            yield [text]


def try_lines(count: int, folder: Path, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Run them; training and sweeps are stopped before their first step."""
    from harness import loop
    from harness.jobs import sweep

    def stop(*args: Any, **how: Any) -> None:
        raise Trained("fuzz: accepted")

    loop.train = stop
    sweep.Processes.launch = lambda self, job_overrides, initial_job_idx: []  # type: ignore[method-assign]
    outside = folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    for i, words in enumerate(lines(count, draw)):
        where = folder / f"case{i}"
        where.mkdir()
        os.chdir(where)
        before = contents(outside)
        found = answer(*words)
        if contents(outside) != before or len(list(folder.iterdir())) != 2:
            found["wrong"] = (
                found["wrong"] or f"it wrote outside its folder: {sorted(p.name for p in folder.iterdir())}"
            )
        os.chdir(folder)
        shutil.rmtree(where)
        yield found


# --- results folders ----------------------------------------------------------------------------------

Damage = Callable[[Path, random.Random, Path], None]


def _run(path: Path) -> Path:
    """The run's folder, of a file in it or in its folder nets."""
    return path.parent.parent if path.parent.name == "nets" else path.parent


def _manifest(change: Callable[[dict[str, Any], random.Random], Any]) -> Damage:
    def damage(path: Path, draw: random.Random, outside: Path) -> None:
        file = _run(path) / "manifest.json"
        facts = json.loads(file.read_text())
        file.write_text(json.dumps(change(facts, draw)))

    return damage


def _entries(node: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*way, key)
        yield from _entries(value, (*way, key))


ODD = (None, [], {}, "", "x", -1, 0, 1.5, True, 10**30, "../../..", "\u202e\x1b[2J", [None], {"a": {"b": []}}, "=1+1",
       ["x"] * 3, "${x}", {"_target_": "os.system"})  # fmt: skip


def _odd(facts: dict[str, Any], draw: random.Random) -> Any:
    *way, last = draw.choice(list(_entries(facts)))
    node = facts
    for key in way:
        node = node[key]
    if draw.random() < 0.2:
        del node[last]
    else:
        node[last] = draw.choice(ODD)
    return facts


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    return lambda path, draw, outside: path.write_bytes(change(path.read_bytes(), draw)) and None  # type: ignore[func-returns-value]


def _flipped(data: bytes, draw: random.Random) -> bytes:
    made = bytearray(data or b"x")
    made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _instead(make: Callable[[Path, Path], Any]) -> Damage:
    def damage(path: Path, draw: random.Random, outside: Path) -> None:
        path.unlink()
        make(path, outside)

    return damage


def _swapped(path: Path, draw: random.Random, outside: Path) -> None:
    other = draw.choice(
        sorted(p for p in _run(path).rglob("*") if p.is_file() and p not in (path, _run(path) / "lock"))
    )
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


def _column(path: Path, draw: random.Random, outside: Path) -> None:
    """Another type or order of a parquet column, or no such column, or another schema version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = _run(path) / f"{draw.choice(['metrics', 'accuracy', 'curves', 'timing'])}.parquet"
    table = pq.ParquetFile(file).read()
    name = draw.choice(table.column_names)
    at = table.schema.get_field_index(name)
    kind = draw.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.set_column(at, name, pa.array([draw.choice(["x", "", "nan"])] * len(table)))
    elif kind == 2:
        table = table.set_column(at, name, pa.array([draw.choice([-(2**40), 2**40, 7])] * len(table)))
    elif kind == 3:
        table = table.set_column(at, name, pa.nulls(len(table)))
    else:
        table = table.slice(0, 0).replace_schema_metadata({})
    pq.write_table(table, file)


def _tensors(path: Path, draw: random.Random, outside: Path) -> None:
    """A file that torch writes, with other content."""
    import torch

    file = draw.choice([_run(path) / "checkpoint.pt", *sorted((_run(path) / "nets").glob("*.pt"))])
    t = torch.zeros(3)
    made = [
        {},
        {"schema_version": 1},
        {"schema_version": 9},
        t,
        [t],
        {"schema_version": 1, "net": t, "state": [t]},
        {"schema_version": 1, "boundary": "x", "net": {"params": {}, "buffers": {}}, "state": {}},
        {"schema_version": 1, "boundary": 0, "net": {"params": {"a": t}, "buffers": 3}, "state": {"learner": t}},
    ]
    torch.save(draw.choice(made), file)  # fmt: skip


DAMAGE: dict[str, Damage] = {
    "truncated": _bytes(lambda data, draw: data[: draw.randrange(max(1, len(data)))]),
    "empty": _bytes(lambda data, draw: b""),
    "flipped": _bytes(_flipped),
    "noise": _bytes(lambda data, draw: draw.randbytes(draw.randint(1, 400))),
    "doubled": _bytes(lambda data, draw: data * 2),
    "swapped": _swapped,
    "removed": _instead(lambda path, outside: None),
    "a folder": _instead(lambda path, outside: path.mkdir()),
    "a pipe": _instead(lambda path, outside: os.mkfifo(path)),
    "a link outside": _instead(lambda path, outside: path.symlink_to(outside / "file")),
    "a dangling link": _instead(lambda path, outside: path.symlink_to("nowhere")),
    "a link to itself": _instead(lambda path, outside: path.symlink_to(path.name)),
    "an odd entry": _manifest(_odd),
    "another odd entry": _manifest(_odd),
    "two odd entries": _manifest(lambda facts, draw: _odd(_odd(facts, draw), draw)),
    "a foreign schema": _manifest(lambda facts, draw: {**facts, "schema_version": draw.choice([0, 2, "1", None])}),
    "a column": _column,
    "another column": _column,
    "tensors": _tensors,
}
READERS = ("leaderboard results", "report results --out report.html", "show RUN", "measure RUN metrics=sharpness",
           "atlas RUN --points 3 --grid 3 --size 20 --vectors 2 --steps 3", "card RUN", "explain results",
           "merge RUN --with average,ties --rows 9 --size 20 --pairs 2 --points 3 --tested 20 --steps 2",
           "sync results", "measure RUN metrics=fast", "ls strategies", "again")  # fmt: skip
CHANGES = ("measure", "atlas", "merge", "card", "again")  # they may write into the run's folder
TRAIN = ("strategy=naive", *BASE, "control=false")


def try_folders(count: int, folder: Path, draw: random.Random, each: int = 3) -> Iterator[dict[str, Any]]:
    """Damage a copy of a results folder in one way, and let some commands read it."""
    whole = folder / "whole"
    whole.mkdir()
    os.chdir(whole)
    for strategy in ("naive", "l2"):
        made = answer(f"strategy={strategy}", *TRAIN[1:], patience=100, wait=300)  # with all imports
        assert made["code"] == 0, made
    outside = folder / "outside"
    outside.mkdir()
    (outside / "file").write_text('{"a": 1}')
    kinds = list(DAMAGE)
    for i in range(count):
        where = folder / f"case{i}"
        shutil.copytree(whole, where, symlinks=True)
        os.chdir(where)
        (run,) = Path("results/runs").glob("*/naive/*")
        files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != "lock")
        target, kind = draw.choice(files), kinds[i % len(kinds)]
        DAMAGE[kind](target, draw, outside)
        name = f"{kind} {target.relative_to(run)}"
        kept, before = contents(outside), contents(Path("results"))
        for typed in [READERS[(i + k * 4) % len(READERS)] for k in range(each)]:
            words = [str(run) if word == "RUN" else word for word in typed.split()]
            found = answer(*(TRAIN if typed == "again" else words))
            if contents(outside) != kept:
                found["wrong"] = found["wrong"] or "it changed a file outside the folder"
            after = contents(Path("results"))
            lost = [path for path, what in before.items() if after.get(path) != what]
            if lost and not typed.startswith(CHANGES):
                found["wrong"] = found["wrong"] or f"it changed {', '.join(lost)}"
            if lost and found["code"] == 2 and [p for p in lost if not p.endswith("lock")] and typed != "again":
                found["wrong"] = found["wrong"] or f"it refused, but changed {', '.join(lost)}"
            if not found["wrong"] and typed.startswith(CHANGES):
                before = after
            yield {**found, "damage": name}
        os.chdir(folder)
        shutil.rmtree(where, ignore_errors=True)


def main(argv: Sequence[str]) -> None:
    what, count = argv[0], int(argv[1])
    with tempfile.TemporaryDirectory() as name:
        os.environ.update({"HOME": name, "XDG_CACHE_HOME": name, "NETRC": f"{name}/none", "HYDRA_FULL_ERROR": "0"})
        for variable in [n for n in os.environ if n.startswith("WANDB_")]:
            del os.environ[variable]
        folder = Path(name) / "work"
        folder.mkdir()
        import torch

        torch.set_num_threads(1)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for found in (try_lines if what == "lines" else try_folders)(count, folder, random.Random(SEED)):
            print(json.dumps(found), flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main(sys.argv[1:])
