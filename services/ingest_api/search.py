"""`GET /search`: documents by the words in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Response

from ingest_api.answers import SearchAnswer
from ingest_api.domain import links
from visionmesh.http import told
from visionmesh.ocr_document import OcrDocument, TextLine
from visionmesh.results import FoundDocument, Images

# Each document comes whole, to look for the words in its lines.
_MAX_PAGE: Final = 20
_MAX_OFFSET: Final = 10_000
_MAX_QUESTION: Final = 500

# Lines that are shown of each document.
_SHOWN_LINES: Final = 5


def search_routes(images: Images) -> APIRouter:
    router = APIRouter(tags=["results"])

    @router.get("/search", responses=told(SearchAnswer, 422, 503))
    def search(
        q: Annotated[str, Query(min_length=1, max_length=_MAX_QUESTION)],
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 20,
        offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
    ) -> Response:
        """The documents with these words in any of their forms, the best first.

        q: all words; `or` between alternatives, quotes around phrases, a minus before what must not be
        there. Case and accents make no difference. next: the `offset` of the page after, None on the last.
        """
        # One more than is shown tells whether there is another page.
        found = images.search(q, limit=limit + 1, offset=offset)
        answer = {
            "query": q,
            "results": [_answer(each) for each in found[:limit]],
            "next": offset + limit if len(found) > limit else None,
        }
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return router


def _answer(found: FoundDocument) -> dict[str, Any]:
    document = found.document
    return {
        "image_id": found.image_id,
        "rank": float(f"{found.rank:.6g}"),
        "language": document.language,
        "pages": len(document.pages),
        "created_at": found.created_at,
        "highlights": list(islice(highlights(document, found.places), _SHOWN_LINES)),
        "links": links(found.image_id),
    }


def highlights(document: OcrDocument, places: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The lines with words that were asked for, in reading order.

    places: where these begin and end in the text, in order. text: the line as HTML, with <mark> around them.
    """
    for line, begin, end in _placed(document):
        inside = [(first - begin, last - begin) for first, last in places if begin <= first and last <= end]
        if inside:
            yield {"page": line.page, "text": _marked(line.text, inside), "polygon": line.polygon}


def _placed(document: OcrDocument) -> Iterator[tuple[TextLine, int, int]]:
    """Each line with where it begins and ends in the text, which is made of them."""
    end = 0
    for line in document.lines:
        begin = document.text.find(line.text, end)
        if begin >= 0:
            end = begin + len(line.text)
            yield line, begin, end


def _marked(text: str, places: Sequence[tuple[int, int]]) -> str:
    pieces = []
    end = 0
    for first, last in places:
        pieces += [escape(text[end:first]), "<mark>", escape(text[first:last]), "</mark>"]
        end = last
    return "".join([*pieces, escape(text[end:])])
