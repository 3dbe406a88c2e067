"""Benchmarks: python -m tests.benchmarks NAME [options of that benchmark] [--json FILE]

Each prints a table; NAME --help explains it. --json FILE also writes its rows, with the machine. Quote ratios, from an
idle machine: contenders take turns in one process, and absolute times are one machine's.

"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import timing


def names() -> dict[str, str]:
    """Benchmark -> the first line of its docstring: every module here that has a `main`."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def written(name: str, arguments: Sequence[str], lines: Iterable[Any]) -> str:
    """The rows of a benchmark as JSON, with the machine; undefined numbers are null."""
    rows = [dataclasses.asdict(line) for line in lines]
    content = {"benchmark": name, "arguments": [*arguments], "machine": timing.machine(), "rows": rows}
    return json.dumps(_defined(content), indent=1, default=str, allow_nan=False) + "\n"


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _defined(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: Sequence[str]) -> int:
    known = names()
    listed = "\n".join(f"  {name:<18}{line}" for name, line in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=(__doc__ or "") + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", choices=list(known), metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    if options.name is None:
        print(parser.description)
        return 0 if {"-h", "--help"} & {*rest} else 2
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: the folder does not exist")
    lines = importlib.import_module(f"tests.benchmarks.{options.name}").main(rest)
    if options.json:
        options.json.write_text(written(options.name, rest, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
