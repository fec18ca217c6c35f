"""Switch a process that root has started to another user, for good.

All of its ids change, real, effective and saved ones, and all of its groups: it keeps none by which it could go back. The kernel
clears its capabilities, and its parent-death signal (`processes`), which is set again. Groups are changed first: after the
change of user that isn't permitted any more.
"""

from __future__ import annotations

import os

from cluster2.errors import ConfigError

from . import processes


def drop_privileges(user: str | int | None, group: str | int | None) -> None:
    """Change to another user and group for good; None: keep the current one (a user alone implies its primary group).

    Args:
        user, group: a name, or a number (as int or digits; a number needs no entry in the databases).
    Raises:
        ConfigError: unknown, or not permitted.
    """
    if user is None and group is None:
        return
    name, uid, gid = _find_user(user)
    if group is not None:
        gid = _find_group(group)
    if (uid, gid) == (os.geteuid(), os.getegid()) and uid != 0:
        return  # already done by a service manager; without privileges even setgroups to the same list is refused
    death_signal = processes.parent_death_signal()
    try:
        # The groups first: after setresuid they can't be changed any more.
        if name is not None:
            os.initgroups(name, gid)
        else:
            os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        # The kernel hides a process that changed its user. This one has no secrets: root's are known to the new user as well.
        processes.show_to_own_user()
        processes.set_parent_death_signal(death_signal)
    except PermissionError as error:
        wanted = f"user = {user!r}, group = {group!r}"
        raise ConfigError(f"{wanted}: only root can change them; start as root or as that user") from error


def ids(user: str | int | None, group: str | int | None) -> tuple[int, int]:
    """Return the user and the group that `drop_privileges` would set. Raises ConfigError: unknown."""
    _, uid, gid = _find_user(user)
    return uid, gid if group is None else _find_group(group)


def _find_user(user: str | int | None) -> tuple[str | None, int, int]:
    import pwd

    try:
        if user is None:
            entry = pwd.getpwuid(os.geteuid())
        else:
            entry = pwd.getpwuid(int(user)) if str(user).isdecimal() else pwd.getpwnam(str(user))
    except KeyError:
        if user is None or str(user).isdecimal():
            return None, os.geteuid() if user is None else int(user), os.getegid()
        raise ConfigError(f"user = {user!r}: there is no such user; create it, or give a numeric id") from None
    return entry.pw_name, entry.pw_uid, entry.pw_gid


def _find_group(group: str | int) -> int:
    import grp

    if str(group).isdecimal():
        return int(group)
    try:
        return grp.getgrnam(str(group)).gr_gid
    except KeyError:
        raise ConfigError(f"group = {group!r}: there is no such group; create it, or give a numeric id") from None
