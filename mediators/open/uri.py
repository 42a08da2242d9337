# SPDX-License-Identifier: LGPL-2.1-or-later
"""One URI, taken apart and put together again: what a person is shown is what is opened, to the last character.

Law of this room: the result is visible ASCII without a quote, a space or a backslash; of what two programs could read
in two ways there is none.  What cannot be made so is refused, not repaired.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from dataclasses import dataclass

from cage_runtime.errors import UsageError
from cage_runtime.text import escape

URI_BYTES_MAX = 8 * 1024
"""Bytes of a URI, as it comes and as it is made."""
HOST_MAX = 253
"""Characters of a host's name (RFC 1035)."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):")
_INSIDE = frozenset({
    "about", "blob", "cage", "chrome", "chrome-extension", "content", "data", "feed", "file", "filesystem", "jar",
    "javascript", "moz-extension", "mocha", "livescript", "resource", "res", "vbscript", "view-source", "wyciwyg",
})
"""Schemes that are about what is in the target, or bring a program along: never, whatever policy says."""
_WEB = {"http": 80, "https": 443}
_MAIL_FIELDS = frozenset({"bcc", "body", "cc", "in-reply-to", "subject", "to"})
"""Of RFC 6068; others attach files in some programs."""
_DEVIATING = re.compile("[\u00df\u03c2\u200c\u200d]")
"""Characters that IDNA 2003 and 2008 read in two ways."""
_SAFE = "!$&()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
"""What stays as it is, of RFC 3986's; `'`, which some handlers quote with, does not."""
_TRIPLET = re.compile(r"%([0-9A-Fa-f]{2})?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_LIKE_A_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Uri:
    """A URI that can be opened: its scheme, in small letters, and its text."""

    scheme: str
    text: str


def check_uri(untrusted_uri: str) -> Uri:
    """The URI in its one form; UsageError, fit for whoever asked, where it has none."""
    if len(untrusted_uri) > URI_BYTES_MAX or len(untrusted_uri.encode("utf-8", "replace")) > URI_BYTES_MAX:
        raise UsageError(f"the URI is longer than {URI_BYTES_MAX} bytes")
    try:
        uri = _normal(untrusted_uri)
    except ValueError as error:
        raise _unfit(untrusted_uri, str(error)) from error
    if len(uri.text) > URI_BYTES_MAX:
        raise UsageError(f"the URI is longer than {URI_BYTES_MAX} bytes where it is written in ASCII")
    return uri


def _unfit(untrusted_uri: str, why: str) -> UsageError:
    return UsageError(f'"{escape(untrusted_uri, limit=80)}" is not opened: {escape(why, limit=200)}')


def _normal(untrusted_uri: str) -> Uri:
    if any(character.isspace() or not character.isprintable() for character in untrusted_uri):
        raise ValueError("it has a space, or a character that cannot be seen")
    if found := next((one for one in '\\"<>^`{|}' if one in untrusted_uri), None):
        raise ValueError(f"it has a {found}, which a URI has only as %{ord(found):02X}")
    match = _SCHEME.match(untrusted_uri)
    if match is None:
        raise ValueError("it has no scheme, such as https:")
    scheme = match[1].lower()
    if scheme in _INSIDE:
        raise ValueError(f"{scheme}: is about what is in a cage already, or is a program")
    if re.search(r"%00", untrusted_uri):
        raise ValueError("it has a NUL")
    parts = urllib.parse.urlsplit(untrusted_uri)
    if scheme == "mailto":
        return Uri(scheme=scheme, text=_mail(parts))
    if scheme in _WEB and not untrusted_uri[match.end():].startswith("//"):
        raise ValueError("it names no host")
    host = _authority(parts, scheme) if untrusted_uri[match.end():].startswith("//") else ""
    return Uri(scheme=scheme, text=f"{scheme}:{host}{_rest(parts, host)}")


def _rest(parts: urllib.parse.SplitResult, host: str) -> str:
    path = _quoted(parts.path, parts.path)
    query = f"?{_quoted(parts.query, 'the query')}" if parts.query else ""
    fragment = f"#{_quoted(parts.fragment, 'the fragment')}" if parts.fragment else ""
    if not (path or host):
        raise ValueError("there is nothing after its scheme")
    return f"{path or ('/' if host else '')}{query}{fragment}"


def _authority(parts: urllib.parse.SplitResult, scheme: str) -> str:
    """`//HOST` or `//HOST:PORT`; a user's name before it, which looks like a host, is refused."""
    if "@" in parts.netloc:
        raise ValueError("it has something before an @, which looks like the host and is not")
    if "%" in parts.netloc:
        raise ValueError("its host is written with %")
    host = _host(parts.hostname or "")
    port = parts.port  # ValueError where that is no port
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("its port is not 1 to 65535")
    return f"//{host}" + (f":{port}" if port is not None and port != _WEB.get(scheme) else "")


def _host(untrusted_host: str) -> str:
    if ":" in untrusted_host:
        return f"[{ipaddress.IPv6Address(untrusted_host).compressed}]"  # whose scope, %, was refused
    if _DEVIATING.search(untrusted_host):
        raise ValueError("its host has a letter that programs read in two ways; write it as xn--")
    try:
        host = untrusted_host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise ValueError("its host is no name") from error
    labels = host.removesuffix(".").split(".")
    if len(host) > HOST_MAX or not all(map(_LABEL.match, labels)):
        raise ValueError("its host is no name")
    if _LIKE_A_NUMBER.match(labels[-1]):
        return str(ipaddress.IPv4Address(host))  # 0x7f.1 and 2130706433 are addresses to some programs
    return host


def _quoted(untrusted_text: str, what: str) -> str:
    """With all that is not safe as %XX, in capitals; a % that is none is refused."""
    def triplet(found: re.Match[str]) -> str:
        if found[1] is None:
            raise ValueError(f"{what} has a % that is not followed by two hexadecimal digits")
        return found[0].upper()

    return "".join(
        piece if piece.startswith("%") else urllib.parse.quote(piece, safe=_SAFE)
        for piece in re.split(r"(%[0-9A-F]{2})", _TRIPLET.sub(triplet, untrusted_text)) if piece)


def _mail(parts: urllib.parse.SplitResult) -> str:
    """RFC 6068: whom to, and fields without a line of their own."""
    if parts.netloc or parts.fragment:
        raise ValueError("mailto: has an address and fields, and nothing else")
    to = _quoted(parts.path, "the address")
    _check_one_line(to, "the address")
    fields = []
    for field in parts.query.split("&") if parts.query else []:
        name, equals, value = field.partition("=")
        if not equals or name.lower() not in _MAIL_FIELDS:
            raise ValueError(f'the field "{name}" of a mail is not for others to set')
        quoted = _quoted(value, f"the field {name}")
        if name.lower() != "body":
            _check_one_line(quoted, f"the field {name}")
        fields.append(f"{name.lower()}={quoted}")
    if not (to or fields):
        raise ValueError("it names nobody")
    return f"mailto:{to}" + (f"?{'&'.join(fields)}" if fields else "")


def _check_one_line(quoted: str, what: str) -> None:
    if "%0A" in quoted or "%0D" in quoted:
        raise ValueError(f"{what} has more than one line")
