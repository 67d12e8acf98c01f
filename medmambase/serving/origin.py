"""Refuse requests that a page of somebody else makes in the browser of whoever uses ours.

Such a page may have a name of its own that it lets point to this machine (DNS rebinding): its
requests have that name as their host. Or it sends images to our address: then the browser tells
where it comes from.
"""

import ipaddress
import re
import socket
from collections.abc import Collection, Sequence

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Return whether ``host``, a name or an address, is this machine alone."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def own_names() -> frozenset[str]:
    """Return the names by which other computers may know this one, in small letters."""
    name = socket.gethostname().lower()
    return frozenset({name, socket.getfqdn().lower(), f"{name}.local"})


def foreign_host(hosts: Sequence[str], names: Collection[str] | None) -> str | None:
    """Return what is wrong with the Host headers of a request, in one line; None where nothing is.

    Any port may stand there, since a tunnel has its own. ``names``: None where the server can be
    reached from this machine alone; else the names of this machine, beside which any address is
    allowed, since only a name can be made to point elsewhere.
    """
    found = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
    host = (found[1] or found[2]) if found else ""
    if is_loopback(host) or (names is not None and (host in names or _address(host) is not None)):
        return None
    return f"the request is for the host {', '.join(hosts)[:80]!r}, which is not this server; open its own address"


def foreign_origin(origins: Sequence[str], hosts: Sequence[str]) -> str | None:
    """Return what is wrong with the Origin headers of a request that sends something, in one line;
    None where nothing is. A program that is no browser sends none."""
    if not origins or [origin.lower() for origin in origins] == [f"http://{host.lower()}" for host in hosts]:
        return None
    return f"the request comes from a page of {', '.join(origins)[:80]!r}, not from that of this server; open its own"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
