"""Writes what huggingface/datatrove decides about the generated documents, where it is installed:

    pip install 'datatrove==0.10.1' regex 'xxhash<4' nltk spacy
    PYTHONPATH=. python tests/data/filters/datatrove_goldens.py

Each document is judged twice, on this project's words and on datatrove's own (those of spaCy).
"""

import json
import pathlib
import runpy

from datatrove.data import Document
from datatrove.pipeline.filters import (
    GopherQualityFilter,
    GopherRepetitionFilter,
    gopher_quality_filter,
    gopher_repetition_filter,
)
from datatrove.utils.text import split_into_words

HERE = pathlib.Path(__file__).parent
COUNT = 1400


def main() -> None:
    """Writes `datatrove_goldens.json`: {"our_words" or "its_words": {"quality" or "repetition": [reason or ""]}}."""
    document = runpy.run_path(str(HERE / "generated.py"))["document"]
    text_of = runpy.run_path(str(HERE.parents[2] / "chinchilla_jax" / "data" / "filters" / "words.py"))["Text"]
    found = {}
    for name, words in (("our_words", lambda text, _: text_of(text).words), ("its_words", split_into_words)):
        gopher_quality_filter.split_into_words = gopher_repetition_filter.split_into_words = words
        found[name] = {}
        for kind, judge in (("quality", GopherQualityFilter()), ("repetition", GopherRepetitionFilter())):
            answers = [judge.filter(Document(text=document(n), id=str(n))) for n in range(COUNT)]
            found[name][kind] = ["" if answer is True else answer[1] for answer in answers]
    (HERE / "datatrove_goldens.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
