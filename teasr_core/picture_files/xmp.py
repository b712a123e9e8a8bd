"""XMP, kept as it is but for what would no longer be true of the restored picture."""

from __future__ import annotations

import re

# Sizes, resolution and orientation of the old pixels, previews, and what describes a second picture in the same file.
# Prefixes are those that XMP and its users fix; the XML would allow others.
_UNTRUE = (
    r"tiff:(?:Orientation|ImageWidth|ImageLength|XResolution|YResolution|ResolutionUnit|Compression|BitsPerSample"
    r"|PhotometricInterpretation|SamplesPerPixel|PlanarConfiguration|YCbCr\w+)"
    r"|exif:(?:PixelXDimension|PixelYDimension|CompressedBitsPerPixel|FocalPlane\w+|SubjectArea|SubjectLocation)"
    r"|exifEX:(?:FocalPlane\w+)|(?:xmp|xap|xmpGImg):Thumbnails|xmpNote:HasExtendedXMP|photoshop:DocumentAncestors"
    r"|hdrgm:\w+|Container:Directory|GContainer:Directory|HDRGainMap:\w+|apdi:\w+|GImage:\w+|GDepth:\w+|GAudio:\w+"
    r"|GPano:\w+Pixels|GCamera:(?:MotionPhoto|MicroVideo)\w*"
)
_PATTERNS = (
    re.compile(rf"<({_UNTRUE})\b[^<>]*/>"),
    re.compile(rf"<({_UNTRUE})\b[^<>]*>.*?</\1\s*>", re.DOTALL),
    re.compile(rf"\s(?:{_UNTRUE})\s*=\s*(?:\"[^\"]*\"|'[^']*')"),
)


def clean_xmp(packet: bytes) -> bytes | None:
    """The packet without what would be untrue. None for one that is no UTF-8, as all of these formats demand."""
    try:
        text = packet.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return None
    for pattern in _PATTERNS:
        text = pattern.sub("", text)
    return text.encode("utf-8")
