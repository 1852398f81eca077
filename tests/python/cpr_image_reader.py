#!/usr/bin/env python3
"""Lists a checkpoint image; written from docs/image-format.md alone, with nothing but Python's standard library.

Prints JSON: the facts about the checkpoint, and of every process its threads, mappings and descriptors. All hashes but
those of the page data are checked, those too with --verify (which is slow: this BLAKE3 is pure Python).
"""

import argparse
import json
import os
import struct
import sys

PAGE = 4096
CHUNK = 1 << 20
HEADER_MAGIC = b"\x89CPR\r\n\x1a\n"
TRAILER_MAGIC = b"\x89CPREND\n"
TRAILER_LENGTH = 208
MAX_DEPTH = 32
FEATURES = ("zstd", "incremental")


class BadImage(Exception):
    """The file is no image, a damaged one, or one that needs a newer reader."""


# BLAKE3, hash mode, from its specification.

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)


def schedules():
    order, rounds = tuple(range(16)), []
    for _ in range(7):
        rounds.append(order)
        order = tuple(order[i] for i in PERMUTATION)
    return rounds


ROUNDS = schedules()


def compress(chaining, block, counter, length, flags):
    """The first eight words of the compression function's output."""
    mask = 0xFFFFFFFF
    words = struct.unpack("<16I", block.ljust(64, b"\0"))
    state = [*chaining, *IV[:4], counter & mask, counter >> 32, length, flags]
    for order in ROUNDS:
        for step, (ia, ib, ic, id_) in enumerate(COLUMNS_AND_DIAGONALS):
            a, b, c, d = state[ia], state[ib], state[ic], state[id_]
            a = (a + b + words[order[2 * step]]) & mask
            d ^= a
            d = (d >> 16 | d << 16) & mask
            c = (c + d) & mask
            b ^= c
            b = (b >> 12 | b << 20) & mask
            a = (a + b + words[order[2 * step + 1]]) & mask
            d ^= a
            d = (d >> 8 | d << 24) & mask
            c = (c + d) & mask
            b ^= c
            b = (b >> 7 | b << 25) & mask
            state[ia], state[ib], state[ic], state[id_] = a, b, c, d
    return tuple(low ^ high for low, high in zip(state[:8], state[8:]))


def subtree(data, counter, root):
    """Chaining value of the tree over data, whose first chunk of 1024 bytes has this number."""
    if len(data) <= 1024:
        value = IV
        blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
        for index, block in enumerate(blocks):
            last = index == len(blocks) - 1
            flags = (CHUNK_START if index == 0 else 0) | ((CHUNK_END | root) if last else 0)
            value = compress(value, block, counter, len(block), flags)
        return value
    # The left subtree has the largest power of two of whole chunks that leaves something to the right.
    left = 1 << (((len(data) - 1) // 1024).bit_length() - 1)
    children = subtree(data[: left * 1024], counter, 0) + subtree(data[left * 1024 :], counter + left, 0)
    return compress(IV, struct.pack("<16I", *children), 0, 64, PARENT | root)


def blake3(data):
    return struct.pack("<8I", *subtree(data, 0, ROOT))


# CBOR, as far as images use it.


class Cbor:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, length):
        if length > len(self.data) - self.at:
            raise BadImage("the metadata end too early")
        self.at += length
        return self.data[self.at - length : self.at]

    def item(self, depth=0):
        start = self.at
        first = self.take(1)[0]
        major, small = first >> 5, first & 31
        if small < 24:
            value = small
        elif small <= 27:
            value = int.from_bytes(self.take(1 << (small - 24)), "big")
        else:
            raise BadImage(f"the metadata are malformed at byte {start}")
        if depth > MAX_DEPTH:
            raise BadImage("the metadata are nested too deeply")
        if major == 0:
            return value
        if major == 1:
            return -1 - value
        if major == 2:
            return self.take(value)
        if major == 3:
            try:
                return self.take(value).decode("utf-8")
            except UnicodeDecodeError:
                raise BadImage(f"text at byte {start} of the metadata is not UTF-8") from None
        if major == 4:
            return [self.item(depth + 1) for _ in range(self.count(value))]
        if major == 5:
            result = {}
            for _ in range(self.count(value)):
                key = self.item(depth + 1)
                if not isinstance(key, str):
                    raise BadImage(f"a key in the map at byte {start} of the metadata is no text")
                result[key] = self.item(depth + 1)
            return result
        if first in (0xF4, 0xF5, 0xF6):
            return {0xF4: False, 0xF5: True, 0xF6: None}[first]
        raise BadImage(f"the metadata are malformed at byte {start}")

    def count(self, value):
        # Each element takes a byte at least.
        if value > len(self.data) - self.at:
            raise BadImage("the metadata end too early")
        return value


# The file.


def check_hash(data, expected, what):
    if blake3(data) != expected:
        raise BadImage(f"{what} is altered")


def read_at(file, offset, length):
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise BadImage("the image is truncated")
    return data


def read_header(file, length):
    if length == 0:
        raise BadImage("the file is empty")
    if read_at(file, 0, min(length, 8)) != HEADER_MAGIC[:length]:
        raise BadImage("the file is not an image")
    (header_length,) = struct.unpack("<I", read_at(file, 8, 4))
    if header_length % PAGE or not PAGE <= header_length <= 65536:
        raise BadImage("the header is altered")
    header = read_at(file, 0, header_length)
    check_hash(header[:-32], header[-32:], "the header")
    major, minor, page_size, _flags = struct.unpack_from("<HHII", header, 12)
    if major != 1:
        raise BadImage(f"the image has format version {major}.{minor}, which is not known")
    if header_length != PAGE:
        raise BadImage("the header has an impossible length")
    (count,) = struct.unpack_from("<H", header, 64)
    at, features = 66, []
    for _ in range(count):
        end = at + 1 + header[at]
        if end > PAGE - 32:
            raise BadImage("the list of required features is malformed")
        features.append(header[at + 1 : end].decode("utf-8", "replace"))
        at = end
    unknown = [name for name in features if name not in FEATURES]
    if unknown:
        raise BadImage("the image needs features that are not known: " + ", ".join(unknown))
    if page_size != PAGE:
        raise BadImage(f"the image has pages of {page_size} bytes")
    return header, features


def read_trailer(file, length, header, packed):
    if length < PAGE + TRAILER_LENGTH:
        raise BadImage("the image is truncated")
    trailer = read_at(file, length - TRAILER_LENGTH, TRAILER_LENGTH)
    if trailer[:8] != TRAILER_MAGIC:
        raise BadImage("the image is truncated")
    check_hash(trailer[:176], trailer[176:], "the trailer")
    positions = struct.unpack_from("<8Q", trailer, 16)
    data_length, manifest_length = positions[1], positions[5]
    if data_length > 8 << 40 or (data_length % PAGE and not packed) or manifest_length > 256 << 20:
        raise BadImage("the trailer gives impossible lengths")
    table = PAGE + data_length
    table_length = (data_length + CHUNK - 1) // CHUNK * 32
    if packed:
        table_length = positions[3]
        if table_length % 40:
            raise BadImage("the trailer gives an impossible table")
    manifest = table + table_length
    total = manifest + manifest_length + TRAILER_LENGTH
    expected = (PAGE, data_length, table, table_length, manifest, manifest_length, total, CHUNK)
    if positions != expected or total != length:
        raise BadImage("the trailer gives impossible positions")
    if trailer[80:112] != header[-32:]:
        raise BadImage("header and trailer are of different images")
    return positions, trailer


def chunks(table, data_offset, data_length, packed):
    """Offset, stored length and hash of every chunk."""
    if not packed:
        for index in range(len(table) // 32):
            start = index * CHUNK
            yield data_offset + start, min(CHUNK, data_length - start), table[index * 32 : index * 32 + 32]
        return
    at = data_offset
    for index in range(len(table) // 40):
        digest, stored, length = struct.unpack_from("<32sII", table, index * 40)
        last = index == len(table) // 40 - 1
        if not 0 < stored <= length <= CHUNK or length % PAGE or (length != CHUNK and not last):
            raise BadImage("the table contradicts itself")
        yield at, stored, digest
        at += stored
    if at != data_offset + data_length:
        raise BadImage("the table contradicts itself")


def read_image(file, verify=False):
    """Checks the image and returns its metadata."""
    length = file.seek(0, os.SEEK_END)
    header, features = read_header(file, length)
    packed = "zstd" in features
    positions, trailer = read_trailer(file, length, header, packed)
    data_offset, data_length, table_offset, table_length, manifest_offset, manifest_length = positions[:6]
    table = read_at(file, table_offset, table_length)
    check_hash(table, trailer[112:144], "the hash table")
    encoded = read_at(file, manifest_offset, manifest_length)
    check_hash(encoded, trailer[144:176], "the metadata")
    for offset, stored, digest in chunks(table, data_offset, data_length, packed):
        if verify:
            check_hash(read_at(file, offset, stored), digest, f"the page data at offset {offset}")
    decoder = Cbor(encoded)
    manifest = decoder.item()
    if not isinstance(manifest, dict) or decoder.at != len(encoded):
        raise BadImage("the metadata are malformed")
    return manifest


# What is shown.


def plain(value):
    """A value as JSON can have it: byte strings in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [plain(element) for element in value]
    if isinstance(value, dict):
        return {key: plain(element) for key, element in value.items()}
    return value


def variant(value):
    """The name of a variant, with or without contents."""
    return next(iter(value)) if isinstance(value, dict) else value


def listing(manifest):
    spaces, files = manifest.get("address_spaces", []), manifest.get("files", [])
    processes = []
    for process in manifest.get("processes", []):
        space = process.get("address_space")
        processes.append({
            "pid": process.get("pid", 0),
            "ppid": process.get("ppid", 0),
            "threads": [thread.get("tid", 0) for thread in process.get("threads", [])],
            "mappings": [
                {
                    "start": mapping["start"],
                    "end": mapping["end"],
                    "kind": variant(mapping["kind"]),
                    "protection": mapping["protection"],
                }
                for mapping in ([] if space is None else spaces[space].get("mappings", []))
            ],
            "descriptors": [
                {"fd": descriptor["fd"], "object": variant(files[descriptor["file"]]["object"])}
                for descriptor in process.get("descriptors", [])
            ],
        })
    return {"checkpoint": plain(manifest.get("checkpoint", {})), "processes": processes}


def main():
    parser = argparse.ArgumentParser(description="List a checkpoint image as JSON.")
    parser.add_argument("image", help="the .cpr file")
    parser.add_argument("--verify", action="store_true", help="check the page data too (slow)")
    arguments = parser.parse_args()
    try:
        with open(arguments.image, "rb") as file:
            shown = listing(read_image(file, arguments.verify))
    except (BadImage, OSError) as error:
        print(f"{arguments.image}: {error}", file=sys.stderr)
        return 65
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        print(f"{arguments.image}: the metadata contradict themselves: {error!r}", file=sys.stderr)
        return 65
    json.dump(shown, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
