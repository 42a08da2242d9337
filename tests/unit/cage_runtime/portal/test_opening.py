# SPDX-License-Identifier: LGPL-2.1-or-later
"""A message that an application composes, as the URI that stands for it."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from dbus_fast import Variant
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.errors import UsageError
from cage_runtime.model import PORTAL_ADDRESSES_MAX
from cage_runtime.portal.opening import mailto


def text(value: str) -> Variant:
    return Variant("s", value)


def texts(*values: str) -> Variant:
    return Variant("as", list(values))


@pytest.mark.parametrize(("options", "uri"), [
    ({}, "mailto:"),
    ({"address": text("a@example.org")}, "mailto:a@example.org"),
    ({"address": text("a@example.org"), "addresses": texts("b@example.org")}, "mailto:a@example.org,b@example.org"),
    ({"subject": text("a & b"), "body": text("1\n2")}, "mailto:?subject=a%20%26%20b&body=1%0A2"),
    ({"cc": texts("c@example.org", "d@example.org")}, "mailto:?cc=c@example.org,d@example.org"),
])
def test_a_message_is_one_uri(options: dict[str, Variant], uri: str) -> None:
    assert mailto(options) == uri


@given(st.text(), st.text(min_size=1), st.lists(st.text(min_size=1), max_size=5))
def test_no_field_reaches_out_of_its_place(address: str, subject: str, copies: list[str]) -> None:
    """Whatever is in them, the URI has these fields and no other, with this content."""
    address, subject, copies = (each.encode("utf-8", "ignore").decode() if isinstance(each, str) else each
                                for each in (address, subject, copies))
    copies = [each.encode("utf-8", "ignore").decode() for each in copies]
    uri = urlsplit(mailto({"address": text(address), "subject": text(subject), "cc": texts(*copies)}))
    assert (uri.scheme, unquote(uri.path)) == ("mailto", address)
    query = parse_qs(uri.query, keep_blank_values=True)
    assert query.keys() <= {"subject", "cc"}
    assert query.get("subject", [""]) == [subject]
    assert query.get("cc", [""]) == [",".join(copies)]


@pytest.mark.parametrize(("options", "why"), [
    ({"attachments": texts("file:///etc/passwd")}, "attachments"),
    ({"attachment_fds": Variant("ah", [0])}, "attachments"),
    ({"address": texts("a@example.org")}, 'option "address" has the type s'),
    ({"cc": text("a@example.org")}, 'option "cc" has the type as'),
    ({"bcc": texts(*["a@example.org"] * (PORTAL_ADDRESSES_MAX + 1))}, "at most 100 addresses"),
])
def test_what_would_not_arrive_whole_is_refused(options: dict[str, Variant], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        mailto(options)
