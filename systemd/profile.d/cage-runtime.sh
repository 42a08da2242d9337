# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh
# For sessions that are begun by a login shell: the applications of a person's cages are in its menus.
cage_runtime_exports=/var/lib/cage-runtime/exports/$(id -u)/share
# Not in root's: the entries are caged's, who is not root, and one click away from being run.
case $cage_runtime_exports:${XDG_DATA_DIRS:-}: in
  */exports/0/share:*) ;;
  *":$cage_runtime_exports:"*) ;;
  *)
    XDG_DATA_DIRS=${XDG_DATA_DIRS:-/usr/local/share:/usr/share}:$cage_runtime_exports
    export XDG_DATA_DIRS
    ;;
esac
unset cage_runtime_exports
