"""Token ids to text while they come in."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PROBE = "do n't , he ' s . It is ?"
"""What a clean-up of spaces changes."""


class TextStream:
    """Decodes growing token ids (T,) into pieces that, put together, are the beginning of the whole text.

    No piece ends in an incomplete character. If transformers decodes by more than the `tokenizers` library
    (a tokenizer in Python, or one that cleans up spaces), there are no pieces, and the text comes at its end.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", hidden: Collection[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self.sent = ""
        self._read = 0
        self._stream = DecodeStream(skip_special_tokens=False)
        self._backend, self._hidden = _backend(tokenizer), hidden
        # One invalid byte makes its whole run of byte tokens unreadable, so a run is text only once it ended.
        # Hidden tokens end no run.
        self._open: set[int | None] = set(self._hidden)
        if self._backend:
            self._open |= {self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}

    def next_piece(self, token_ids: list[int]) -> str:
        """The text beyond `sent` that is certain; "" if there is none."""
        end = len(token_ids)
        while end > self._read and token_ids[end - 1] in self._open:
            end -= 1
        if self._backend is None or end == self._read:
            return ""
        shown = [token for token in token_ids[self._read : end] if token not in self._hidden]
        piece = (self._stream.step(self._backend, shown) if shown else None) or ""
        self._read, self.sent = end, self.sent + piece
        return piece


def _backend(tokenizer: Any) -> "Tokenizer | None":
    """The tokenizer of the `tokenizers` library, if it alone decodes."""
    found = getattr(tokenizer, "backend_tokenizer", None)
    if found is None:
        return None
    probe = found.encode(PROBE, add_special_tokens=False).ids
    return found if found.decode(probe) == tokenizer.decode(probe) else None
