"""The leaderboard as files: Markdown and HTML to read, tables for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import store
from harness.leaderboard.records import FRONTS, SCORES, Board, Leaderboard, Row
from harness.leaderboard.texts import markdown
from harness.wording import spreadsheet


def records(found: Leaderboard) -> list[dict[str, Any]]:
    """A record for each entry of each board, for other programs."""
    return [_record(board, row) for board in found.boards for row in board.rows]


def _record(board: Board, row: Row) -> dict[str, Any]:
    entry = row.entry
    record: dict[str, Any] = {
        "stream": board.stream,
        "scenario": board.scenario,
        "setting": board.setting,
        "stream_version": board.version,
        "split": board.split,
        "strategy": entry.strategy,
        "entry": entry.label,
        "run_ids": " ".join(run.manifest["run_id"] for run in entry.runs),
        "state": entry.state,
        "sorted_by": board.by.name,
        "seeds": " ".join(map(str, board.seeds)),
        "n": len(board.seeds),
        "found": row.found,
        "diverged": len(entry.diverged),
        "rank": row.rank,
    }
    pairs = {"rank": row.rank_interval, "iqm": row.iqm_interval, "improvement": row.improvement_interval}
    record |= {"iqm": row.iqm, "baseline": board.baseline, "improvement": row.improvement, "detectable": row.detectable}
    record |= {f"{name}_{end}": v for name, pair in pairs.items() for end, v in zip(("low", "high"), pair)}
    record |= {"difference": row.difference[0], "difference_half_width": row.difference[1]}
    for score in SCORES:
        mean, half, n = row.means[score.name]
        record |= {score.name: mean, f"{score.name}_half_width": half, f"{score.name}_n": n}
    record |= {"step_cost": entry.step, "memory_bytes": entry.memory, "train_seconds_per_seed": entry.seconds}
    return record | {f"front_{name}": name in row.fronts for name in FRONTS}


def seed_records(found: Leaderboard) -> list[dict[str, Any]]:
    """A record for each score of each seed: the values behind the means."""
    return [
        {
            "stream": board.stream,
            "scenario": board.scenario,
            "setting": board.setting,
            "entry": row.entry.label,
            "seed": seed,
            "score": score.name,
            "value": float(value),
            "diverged": seed in row.entry.diverged,
        }
        for board in found.boards
        for row in board.rows
        for score in SCORES
        for seed, value in zip(row.entry.seeds, row.entry.scores[score.name])
    ]


def write(found: Leaderboard, out: Path) -> None:
    """Write leaderboard.md, .html, .csv and .parquet, and all seeds' values as leaderboard_seeds.csv and .parquet."""
    import pandas as pd

    from harness.report import html

    tables = {"leaderboard": pd.DataFrame(records(found)), "leaderboard_seeds": pd.DataFrame(seed_records(found))}
    pages = {"leaderboard.md": markdown(found), "leaderboard.html": html(found)}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in pages.items():
        store.write_text(out / name, content)
    for name, frame in tables.items():
        with store.replacing(out / f"{name}.csv") as tmp:
            texts = [c for c in frame if not pd.api.types.is_numeric_dtype(frame[c])]
            frame.assign(**{str(c): frame[c].map(spreadsheet) for c in texts}).to_csv(tmp, index=False)
        with store.replacing(out / f"{name}.parquet") as tmp:
            frame.to_parquet(tmp, index=False)
