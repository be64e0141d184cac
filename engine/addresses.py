"""Addresses as gRPC and people write them: HOST:PORT, [IPV6]:PORT or unix:PATH."""

import ipaddress

UNIX_PREFIX = "unix:"


def host_of(address: str) -> str:
    """Returns the host of an address, or unix:PATH whole."""
    return address if address.startswith(UNIX_PREFIX) else address.rpartition(":")[0].strip("[]")


def is_local(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    if host == "localhost" or host.startswith(UNIX_PREFIX):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
