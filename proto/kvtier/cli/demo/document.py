"""The document that the demo asks about: real text, cut to a known number of tokens. Pure."""

from pathlib import Path

from kvtier.errors import KvtierError

__all__ = ["Document", "DocumentError", "cut_document", "read_document"]

TOKENS_MIN = 4100
"""With less, the questions' context would not reach 4,000 tokens."""
TOKENS_MAX = 4400
"""More would only make a CPU demo longer."""


class DocumentError(KvtierError):
    """The document cannot be used; the message says why and what would do."""

    reason = "DOCUMENT"


class Document:
    """Text of TOKENS_MIN..TOKENS_MAX tokens and where it came from."""

    def __init__(self, text: str, source: str, token_count: int, whole: bool) -> None:
        self.text = text
        self.source = source
        self.token_count = token_count
        self.whole = whole


def read_document(path: Path | None) -> tuple[str, str]:
    """(text, what it is) of `path`, or of this project's own docs. Raises DocumentError."""
    return _read(path) if path is not None else _own_documentation()


def cut_document(text: str, source: str, tokenizer_file: Path) -> Document:
    """The text's beginning, as long as the demo wants it. Raises DocumentError when short."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) < TOKENS_MIN:
        raise DocumentError(
            f"{source} has {len(ids):,} tokens; the demo needs at least {TOKENS_MIN:,}."
            " Choose a longer text with --document FILE",
            token_count=len(ids),
        )
    if len(ids) <= TOKENS_MAX:
        return Document(text, source, len(ids), whole=True)
    # A cut inside a character would leave a replacement mark at the end.
    cut = tokenizer.decode(ids[:TOKENS_MAX]).rstrip("\N{REPLACEMENT CHARACTER}")
    return Document(cut, source, TOKENS_MAX, whole=False)


def _read(path: Path) -> tuple[str, str]:
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise DocumentError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it or choose another"
        ) from None


def _own_documentation() -> tuple[str, str]:
    checkout = Path(__file__).resolve().parents[4]
    pages = [checkout / "README.md", *sorted((checkout / "docs").rglob("*.md"))]
    texts = [page.read_text(encoding="utf-8") for page in pages if page.is_file()]
    if len(texts) < 2:
        raise DocumentError(
            "kvtier's documentation is not beside this installation; name a text with"
            " --document FILE"
        )
    return "\n\n".join(texts), f"kvtier's own documentation ({len(texts)} files)"
