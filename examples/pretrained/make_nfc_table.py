#!/usr/bin/env python3
"""Writes nfc_table.hpp, beside this file, from Python's own Unicode data: what NFC needs to know."""
import pathlib
import sys
import textwrap
import unicodedata


def stream(name, comment, numbers):
    text = " ".join(f"{n:x}" for n in numbers)
    lines = textwrap.wrap(text, 110)
    # Each line but the last ends with the blank that wrap() took.
    body = "\n".join(f'    "{line}{" " if i + 1 < len(lines) else ""}"' for i, line in enumerate(lines))
    return f"/// {comment}\ninline constexpr std::string_view {name} =\n{body};\n"


decompositions, excluded, classes = [], [], []
previous = previous_excluded = previous_end = 0
for code in range(sys.maxunicode + 1):
    character = chr(code)
    if 0xAC00 <= code < 0xAC00 + 11172:
        continue  # Hangul syllables follow a rule
    parts = unicodedata.decomposition(character)
    if parts and not parts.startswith("<"):
        first, second = ([int(part, 16) for part in parts.split()] + [0])[:2]
        decompositions += [code - previous, first, second]
        previous = code
        if second and unicodedata.normalize("NFC", chr(first) + chr(second)) != character:
            excluded.append(code - previous_excluded)
            previous_excluded = code
    combining = unicodedata.combining(character)
    if combining:
        if classes and code == previous_end and classes[-1] == combining:
            classes[-2] += 1
        else:
            classes += [code - previous_end, 1, combining]
        previous_end = code + 1

header = f"""// By make_nfc_table.py, of Unicode {unicodedata.unidata_version}: numbers in hexadecimal.
#pragma once

#include <string_view>

namespace pretrained::detail {{

{stream("kDecompositions", "Canonical decompositions but Hangul's: distance from the one before, first, second or 0.", decompositions)}
{stream("kExcluded", "Of these, the pairs that do not compose: distance from the one before.", excluded)}
{stream("kCombiningClasses", "Combining classes other than 0: distance from the end of the range before, length, class.", classes)}
}}  // namespace pretrained::detail
"""
(pathlib.Path(__file__).parent / "nfc_table.hpp").write_text(header)
