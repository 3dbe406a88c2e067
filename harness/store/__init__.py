"""A run on disk: names, tables, files, the run folder, readers."""

from harness.store.run_folder import (
    DEFAULTS,
    INITIAL,
    SCHEMA_VERSION,
    SCHEMAS,
    Rows,
    Run,
    RunFolder,
    RunLocked,
    SchemaError,
    StoreError,
    check_version,
    described,
    find_runs,
    identity,
    now,
    read_all,
    read_table,
    replacing,
    reporting,
    schema,
    slug,
    write_frame,
    write_text,
)

__all__ = [
    "DEFAULTS", "INITIAL", "SCHEMAS", "SCHEMA_VERSION", "Rows", "Run", "RunFolder", "RunLocked", "SchemaError",
    "StoreError", "check_version", "described", "find_runs", "identity", "now", "read_all", "read_table", "replacing",
    "reporting", "schema", "slug", "write_frame", "write_text",
]  # fmt: skip
