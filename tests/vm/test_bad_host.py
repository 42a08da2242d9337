from tests.vm.machine import *
import pytest, json
from pathlib import Path
def show(*w, given=""):
    e = run(*w); print("$", *w, "->", e.returncode, "|", e.stdout, "|", e.stderr)
def journal(n=12, unit="cage*"):
    print(run("journalctl","-q","--no-pager","-o","cat","-n",str(n),"-u",unit).stdout)
def core(verb="restart"):
    run("systemctl", "reset-failed")
    show("systemctl", verb, "caged.service")
    journal()
    show("cagectl", "list")
def mend():
    run("systemctl", "reset-failed")
    show("systemctl", "restart", "cage-spawner.service", "cage-apps.service", "cage-mediator@files.service", "caged.service")
    show("cagectl", "list")

def test_ro(cage):
    cage("kept")
    P="/var/lib/cage-runtime"
    ok("mount","--bind",P,P); ok("mount","-o","remount,bind,ro",P)
    show("cagectl","create","next")
    show("cagectl","stop","kept")
    core()
    run("systemctl", "reset-failed")
    show("systemctl","restart","cage-spawner", "cage-apps", "cage-mediator@files"); journal()
    ok("umount",P)
    mend(); journal()
def test_group(cage):
    cage("kept")
    ok("groupdel","cage-gateways")
    core()
    show("cagectl","create","next")
    run("systemctl", "reset-failed")
    show("systemctl","restart","cage-spawner", "cage-mediator@files"); journal()
    show("systemd-sysusers")
    mend(); show("cagectl","destroy","next","--yes")
def test_owner(cage):
    cage("kept")
    for d in ("cages","audit","flatpak","staging","storage"):
        p="/var/lib/cage-runtime/"+d
        owner=ok("stat","-c","%U:%G",p).strip()
        ok("chown","nobody:nogroup",p)
        print("=====",d)
        run("systemctl", "reset-failed")
        show("systemctl","restart","cage-spawner", "cage-apps", "cage-mediator@files")
        core()
        show("cagectl","create","next"); show("cagectl","destroy","next","--yes")
        ok("chown",owner,p)
        mend()
def test_clock(cage):
    cage("kept")
    show("date","-s","-2 days"); 
    show("cagectl","create","next"); show("cagectl","destroy","next","--yes")
    core()
    show("cagectl","audit","verify"); show("cagectl","audit","tail"); show("cagectl","status","kept"); show("cagectl","doctor")
    show("date","-s","+2 days")
    core(); show("cagectl","status","kept")
def test_override(cage):
    cage("kept")
    for unit, text in (("caged","[Service]\nUser=root\n"),("caged","[Service]\nExecStart=\nExecStart=/usr/bin/nothing\n"),("caged","[Service\nnonsense"),("caged", "[Service]\nPrivateNetwork=yes\nProtectSystem=strict\nReadWritePaths=\nReadOnlyPaths=/var/lib/cage-runtime /run/cage-runtime\n"),
       ("cage-spawner","[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet=CAP_CHOWN\n"),("cage-spawner","[Service]\nProtectSystem=strict\nPrivateTmp=yes\n"),("cage-spawner","[Service]\nUser=caged\n"), ("cage-spawner","[Service]\nPrivateUsers=yes\n"),("cage-spawner","[Service]\nRestrictNamespaces=yes\n"), ("cage-spawner","[Service]\nDelegate=no\nProtectControlGroups=yes\n")):
        print("=====", unit, repr(text))
        d=Path(f"/etc/systemd/system/{unit}.service.d"); d.mkdir(exist_ok=True); (d/"x.conf").write_text(text)
        ok("systemctl","daemon-reload")
        run("systemctl", "reset-failed")
        show("systemctl","restart",unit)
        journal(); show("cagectl","list")
        show("cagectl","create","next"); show("cagectl","destroy","next","--yes")
        (d/"x.conf").unlink(); d.rmdir(); ok("systemctl","daemon-reload")
        mend()
def test_two(cage):
    cage("kept")
    show("setpriv","--reuid=caged","--regid=caged","--init-groups","/usr/sbin/caged")
    show("timeout", "20", "/usr/sbin/caged","--standalone"); show("timeout", "20", "/usr/lib/cage-runtime/bin/cage-spawner")
    show("cagectl","list"); journal(5)
def test_flatpak(cage):
    cage("kept")
    show("cagectl","app","remote-add","sample","file:///var/lib/cage-runtime-quickstart/sample/repo","--gpg-key=/var/lib/cage-runtime-quickstart/sample/key.gpg")
    show("cagectl","app","install","kept","org.cageruntime.Notes")
    show("cagectl","run","kept","org.cageruntime.Notes","--", "--help")
    show("mv","/usr/bin/flatpak","/usr/bin/flatpak.away")
    show("cagectl","run","kept","org.cageruntime.Notes","--", "--help")
    show("cagectl","app","install","kept","org.cageruntime.Notes")
    show("cagectl","app","update","kept")
    show("cagectl","app","list","kept")
    show("cagectl","doctor")
    show("mv","/usr/bin/flatpak.away","/usr/bin/flatpak")
    show("cagectl","run","kept","org.cageruntime.Notes","--", "--help")
