"""What a file may ask for: bounds that no file of weights comes near, and that keep memory and time small for the others."""

from __future__ import annotations

from coatref.errors import FileFormatError

LARGEST_HEADER = 8 * 10**6  # bytes; the largest spec that there can be, 1000 blocks of 1000 runs, takes about 6 million
MOST_TENSORS = 10_000  # in a format whose list of tensors is not one text; the largest CoAtNet has about 2000
LONGEST_NAME = 1000  # characters; dialects have names of at most 100, and say so where they are read
MOST_SHARDS = 200  # files held open together
PACKED = 16  # times smaller than its content is a packed file of weights at most: trained ones hardly pack at all ...
ALWAYS = 64 * 2**20  # bytes; ... and small ones may be all zeros, of which deflate makes a thousandth


def refuse_bomb(unpacked: int, size: int) -> None:
    """Refuse content that is much larger than the file that holds it.

    Args:
        unpacked: bytes of everything in the file together, as it says.
        size: of the file, in bytes.

    Raises:
        FileFormatError: it is; the message is a part of a sentence.
    """
    if unpacked > max(PACKED * size, ALWAYS):
        raise FileFormatError(
            f"it has {size} bytes and would unpack to {unpacked:.4g}, more than {PACKED} times as many and than {ALWAYS}"
        )
