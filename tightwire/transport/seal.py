"""What makes a message this job's own: a keyed digest before it, so that nothing else is even read."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, final

DIGEST_BYTES: Final = 16


@final
class Seal:
    """Marks messages with HMAC-SHA256, cut to 16 bytes, and drops whatever is not so marked.

    >>> seal = Seal("the job's secret", "nonce of this attempt")
    >>> seal.open(seal.close(b"here")), seal.open(b"forged" * 9)
    (b'here', None)
    """

    def __init__(self, secret: str, nonce: str) -> None:
        """Derives the key.

        Args:
            secret: known to the job's processes alone; may be empty, and then `nonce` is all there is to know.
            nonce: of this attempt, so that messages of an earlier one mean nothing.
        """
        self._key = hashlib.sha256(f"tightwire\0{secret}\0{nonce}".encode()).digest()

    def close(self, message: bytes) -> bytes:
        """Returns the message with its digest before it."""
        return self._digest(message) + message

    def open(self, data: bytes) -> bytes | None:
        """Returns the message; None if another key, or none, was used."""
        digest, message = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return message if hmac.compare_digest(digest, self._digest(message)) else None

    def _digest(self, message: bytes) -> bytes:
        return hmac.new(self._key, message, hashlib.sha256).digest()[:DIGEST_BYTES]


def fingerprint(secret: str) -> str:
    """Returns what tells two secrets apart without telling either."""
    return hashlib.sha256(f"tightwire fingerprint\0{secret}".encode()).hexdigest()[:16] if secret else "none"
