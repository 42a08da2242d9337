# SPDX-License-Identifier: LGPL-2.1-or-later
"""One URI in one form, or none (M60)."""

from __future__ import annotations

import string
import urllib.parse

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cage_runtime.errors import UsageError
from cage_runtime.text import is_visible
from mediators.open.uri import URI_BYTES_MAX, check_uri

GOOD = [
    ("https://example.org", "https://example.org/"),
    ("HTTPS://Example.ORG:443/A", "https://example.org/A"),
    ("http://example.org:80?x=1#y", "http://example.org/?x=1#y"),
    ("http://example.org:8080/", "http://example.org:8080/"),
    ("https://example.org/%7euser/%2e%2e/é?q=ü", "https://example.org/%7Euser/%2E%2E/%C3%A9?q=%C3%BC"),
    ("https://example.org/it's", "https://example.org/it%27s"),
    ("https://bücher.example/", "https://xn--bcher-kva.example/"),
    ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
    ("https://example。org/", "https://example.org/"),
    ("https://[2001:DB8::0:1]:8443/", "https://[2001:db8::1]:8443/"),
    ("http://127.0.0.1/", "http://127.0.0.1/"),
    ("mailto:a@example.org", "mailto:a@example.org"),
    ("MAILTO:a@example.org?Subject=Hi%20you&body=one%0D%0Atwo",
     "mailto:a@example.org?subject=Hi%20you&body=one%0D%0Atwo"),
    ("ftp://example.org/pub", "ftp://example.org/pub"),
    ("xmpp:a@example.org", "xmpp:a@example.org"),
]


@pytest.mark.parametrize(("uri", "normal"), GOOD)
def test_a_good_uri_has_one_form(uri: str, normal: str) -> None:
    made = check_uri(uri)
    assert (made.text, made.scheme) == (normal, normal.partition(":")[0])


@pytest.mark.parametrize("uri", [
    "javascript:alert(1)", "JavaScript:alert(1)", "java\tscript:alert(1)", "file:///etc/passwd", "FILE:/etc/passwd",
    "data:text/html,x", "vbscript:x", "view-source:https://example.org", "about:config", "blob:https://x/1",
    "jar:https://x!/y", "filesystem:https://x/",
])
def test_m60_what_is_inside_or_a_program_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="is not opened"):
        check_uri(uri)


@pytest.mark.parametrize(("uri", "why"), [
    ("http://user@example.org", "before an @"), ("http://user:secret@example.org", "before an @"),
    ("https://example.org@evil.example", "before an @"), ("https://example.org%40evil.example/", "written with %"),
    ("https://example.org\\@evil.example/", "which a URI has only as"), ("https:\\\\example.org", "only as"),
    ("https://ex%61mple.org/", "written with %"), ("https:example.org", "names no host"), ("https:///x", "no name"),
    ("https://", "no name"), ("//example.org", "no scheme"), ("example.org", "no scheme"), ("", "no scheme"),
    ("https://example.org:0/", "port"), ("https://example.org:65536/", "ort"), ("https://example.org:x/", "ort"),
    ("https://example.org:/", "port"), ("https://-x.example/", "no name"), ("https://a..b/", "no name"),
    ("https://0x7f.1/", ""), ("https://2130706433/", ""), ("https://127.1/", ""), ("https://1.2.3.4.5/", ""),
    ("https://[::1/", ""), ("https://[fe80::1%25eth0]/", "written with %"), ("https://straße.example/", "two ways"),
    ("https://example.org/%", "two hexadecimal digits"), ("https://example.org/%zz", "two hexadecimal digits"),
    ("https://example.org/%00", "NUL"), ("mailto:", "nobody"), ("mailto:a@b?attach=/etc/passwd", "attach"),
    ("mailto:a@b?subject=x%0ABcc:c@d", "more than one line"), ("mailto:a@b%0d%0ax", "more than one line"),
    ("--help", "no scheme"), ("-https://x", "no scheme"), ("xmpp:", "nothing after"),
])
def test_m60_what_looks_like_another_is_refused(uri: str, why: str) -> None:
    with pytest.raises(UsageError, match="is not opened") as refused:
        check_uri(uri)
    assert why in refused.value.sentence


@pytest.mark.parametrize("between", ["\n", "\r", "\r\n", " ", "\t", "\0", "\x1b", "\u2028", "\u00a0", "\u202e", "\x85"])
def test_m60_a_second_url_or_what_cannot_be_seen_is_refused(between: str) -> None:
    with pytest.raises(UsageError, match="a space, or a character that cannot be seen") as refused:
        check_uri(f"https://example.org/{between}https://evil.example/")
    assert is_visible(refused.value.sentence)


@pytest.mark.parametrize(("host", "shown"), [
    ("аpple.com", "xn--pple-43d.com"),  # noqa: RUF001 - a Cyrillic letter
    ("раураl.com", "xn--l-7sba6dbr.com"),  # noqa: RUF001
    ("ｅxample.org", "example.org"),  # noqa: RUF001 - what a full-width letter means to every program
])
def test_m60_a_homograph_is_shown_as_punycode(host: str, shown: str) -> None:
    assert check_uri(f"https://{host}/").text == f"https://{shown}/"


def test_m60_the_longest_and_one_more() -> None:
    longest = "https://example.org/" + "a" * (URI_BYTES_MAX - 20)
    assert check_uri(longest).text == longest
    for too_long in (longest + "a", "https://example.org/" + "é" * (URI_BYTES_MAX // 2), "https:" + "a" * 65536):
        with pytest.raises(UsageError, match=f"longer than {URI_BYTES_MAX} bytes"):
            check_uri(too_long)
    with pytest.raises(UsageError, match="written in ASCII"):
        check_uri("https://example.org/" + "é" * 2000)


ALPHABET = string.printable + "éаß。\u202e\u200d\U0001f600\ud800\x9b"


@given(st.one_of(
    st.text(ALPHABET, max_size=60),
    st.builds("{}://{}{}".format, st.sampled_from(["http", "https", "ftp", "HTTP"]), st.text(ALPHABET, max_size=20),
              st.text(ALPHABET, max_size=30)),
    st.builds("mailto:{}?{}".format, st.text(ALPHABET, max_size=20), st.text(ALPHABET, max_size=30)),
))
@example("https://a/\ud800")
@example("https://[::ffff:1.2.3.4]/")
def test_whatever_comes_it_is_one_visible_uri_or_a_sentence(untrusted: str) -> None:
    try:
        uri = check_uri(untrusted)
    except UsageError as error:
        fault = error.sentence
    else:
        fault = ""
    assert is_visible(fault)
    if fault:
        return
    assert uri.text.isascii()
    assert uri.text.isprintable()
    assert not set(uri.text) & set(" \\\"'<>`^{|}")
    assert uri.text.startswith(f"{uri.scheme}:")
    assert check_uri(uri.text) == uri, "it is in its one form already"
    parts = urllib.parse.urlsplit(uri.text)
    assert (parts.scheme, parts.username) == (uri.scheme, None)
