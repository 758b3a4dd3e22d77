"""What the job of ``hybrid_word_count`` does."""

from __future__ import annotations

import json
from pathlib import Path

from air_executor.jobs import queue_tasks


def split(folder: str, lines: int) -> int:
    """Cut the text into chunks, and queue a task for each, and one for what comes after them."""
    text = (Path(folder) / "text.txt").read_text().splitlines()
    chunks = [text[begin : begin + lines] for begin in range(0, len(text), lines)]
    ids = []
    for number, chunk in enumerate(chunks):
        path = Path(folder) / f"chunk-{number}.txt"
        path.write_text("\n".join(chunk))
        ids.append(f"count-{number}")
    queue_tasks(
        [
            *(
                {"id": each, "function": "work.words:count", "arguments": {"folder": folder, "number": number}}
                for number, each in enumerate(ids)
            ),
            {"id": "merge", "function": "work.words:merge", "arguments": {"folder": folder}, "dependencies": ids},
        ]
    )
    return len(ids)


def count(folder: str, number: int) -> int:
    """Count the words of a chunk."""
    words = len((Path(folder) / f"chunk-{number}.txt").read_text().split())
    (Path(folder) / f"count-{number}.json").write_text(json.dumps(words))
    return words


def merge(folder: str) -> dict[str, int]:
    """Add the counts up."""
    counts = [json.loads(path.read_text()) for path in Path(folder).glob("count-*.json")]
    return {"words": sum(counts), "chunks": len(counts)}
