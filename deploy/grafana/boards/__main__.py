"""Rewrites the committed dashboards."""

from __future__ import annotations

from boards import edge, overview, recognition, workers
from boards.panels import FOLDER, rendered

BOARDS = {
    "overview": overview.board,
    "workers": workers.board,
    "recognition": recognition.board,
    "edge": edge.board,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, board in BOARDS.items():
        (FOLDER / f"{name}.json").write_text(rendered(board()))


if __name__ == "__main__":
    main()
