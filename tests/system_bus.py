# SPDX-License-Identifier: LGPL-2.1-or-later
"""A system bus of a test's own: the rules of a distribution's system.conf, and the policy that we ship beside them."""

from __future__ import annotations

from pathlib import Path

POLICIES = Path(__file__).parents[1] / "policies" / "dbus"

_CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <includedir>{policies}</includedir>
  {more}
</busconfig>
"""


def configuration(socket: Path, policies: Path = POLICIES, services: Path | None = None) -> str:
    """The text of a dbus-daemon's --config-file for a bus on `socket` with the policy files in `policies`, and with
    `services`, a directory that is there, for what can be started."""
    more = "" if services is None else f"<servicedir>{services}</servicedir>"
    return _CONFIGURATION.format(socket=socket, policies=policies, more=more)
