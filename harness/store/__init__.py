"""A run on disk: names, tables, files, the run folder, readers."""

from harness.store.errors import SCHEMA_VERSION, Damaged, RunLocked, SchemaError, StoreError, check_version, reporting
from harness.store.files import now, replacing, save_figure, write_text
from harness.store.manifest import read_manifest
from harness.store.names import identity, slug
from harness.store.readers import Run, find_run, find_runs, read_all, read_rows
from harness.store.run_folder import INITIAL, RunFolder, run_path
from harness.store.tables import DEFAULTS, SCHEMAS, TableRows, read_about, read_table, schema, write_frame

__all__ = [
    "DEFAULTS", "INITIAL", "SCHEMAS", "SCHEMA_VERSION", "Damaged", "Run", "RunFolder", "RunLocked", "SchemaError",
    "StoreError", "TableRows", "check_version", "find_run", "find_runs", "identity", "now", "read_about", "read_all",
    "read_manifest", "read_rows", "read_table", "replacing", "reporting", "run_path", "save_figure", "schema",
    "slug", "write_frame", "write_text",
]  # fmt: skip
