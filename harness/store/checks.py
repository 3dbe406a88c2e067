"""Whether a finished run is complete, before anything is computed from it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from harness.store.errors import Damaged, regular
from harness.store.manifest import read_manifest
from harness.store.tables import SCHEMAS, check_file


def check_finished(path: Path) -> None:
    """Damaged or SchemaError if a file of a finished run is damaged, as far as its first and last bytes say."""
    read_manifest(path)
    for name in SCHEMAS:
        if not (path / f"{name}.parquet").exists():
            raise Damaged(path / f"{name}.parquet", "missing")
        check_file(path / f"{name}.parquet", name)
    for file in (path / "checkpoint.pt", *(path / "nets").glob("*.pt")):
        regular(file)
        if file.exists() and not _ends(file):
            raise Damaged(file, "incomplete")


def _ends(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return False
