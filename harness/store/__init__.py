"""A run on disk: names, tables, files, the run folder, readers."""

from harness.store.errors import SCHEMA_VERSION, RunLocked, SchemaError, StoreError, check_version, reporting
from harness.store.files import now, replacing, write_text
from harness.store.names import identity, slug
from harness.store.readers import Run, find_run, find_runs, read_all
from harness.store.run_folder import INITIAL, RunFolder, run_path
from harness.store.tables import DEFAULTS, SCHEMAS, TableRows, read_about, read_table, schema, write_frame

__all__ = [
    "DEFAULTS", "INITIAL", "SCHEMAS", "SCHEMA_VERSION", "Run", "RunFolder", "RunLocked", "SchemaError", "StoreError",
    "TableRows", "check_version", "find_run", "find_runs", "identity", "now", "read_about", "read_all", "read_table",
    "replacing", "reporting", "run_path", "schema", "slug", "write_frame", "write_text",
]  # fmt: skip
