"""A SentencePiece model of the unigram kind as a tokenizer's JSON file (Kudo 2018, arXiv:1804.10959)."""

from pathlib import Path

from google.protobuf.message import DecodeError
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from recserve.errors import DataError
from recserve.proto import sentencepiece_outline_pb2 as pb

# The places of the pieces that are no text, as SentencePiece numbers them unless told otherwise.
UNKNOWN, BEGIN, END = 0, 1, 2
SPACE = "▁"


def write_tokenizer(source: Path, target: Path) -> None:
    """Writes the tokenizer of the model ``source``; raises :class:`DataError` for a file that is none.

    A text begins and ends with the pieces for that.
    """
    try:
        model = pb.Model.FromString(source.read_bytes())
    except DecodeError as error:
        raise DataError(f"file {source}", found="no SentencePiece model", expected="one") from error
    vocabulary = [(piece.piece.decode(), piece.score) for piece in model.pieces]
    if len(vocabulary) <= END:
        raise DataError(f"pieces of {source}", found=len(vocabulary), expected=f"more than {END}")
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=UNKNOWN, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(model.normaliser.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    begin, end = ((vocabulary[place][0], place) for place in (BEGIN, END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A {end[0]}", special_tokens=[begin, end]
    )
    tokenizer.save(str(target))
