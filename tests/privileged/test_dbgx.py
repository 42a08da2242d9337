from tests.privileged.test_portals import *
def test_dbg(runtime, work, vault, opened):
    with policy(runtime, "open.Uri * work @default allow target=vault\n"):
        e = runtime.cagectl("run", "work", debian.TOOLS, "--", "sh", "-c", "G_MESSAGES_DEBUG=all gio open https://example.org/a; gdbus introspect --session -d org.freedesktop.portal.Desktop -o /org/freedesktop/portal/desktop -x | head -50; gdbus call --session --dest org.freedesktop.portal.Desktop --object-path /org/freedesktop/portal/desktop --method org.freedesktop.DBus.Properties.GetAll org.freedesktop.portal.OpenURI; ls -la /.flatpak-info /usr/share/applications; env")
        print(e.stdout.decode(), e.stderr.decode())
        print(runtime.ok("logs","work"))
        assert 0
