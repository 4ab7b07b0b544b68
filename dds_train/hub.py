"""Whether the model hub can be reached at all: its client would try for a minute before it says no."""

import os
import socket
from functools import cache
from urllib.parse import urlparse
from urllib.request import getproxies


@cache
def reachable() -> bool:
    """False only if it is sure: switched off (HF_HUB_OFFLINE), or its name is not known here and there is no proxy to ask."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    if {"https", "all"} & set(getproxies()):
        return True
    try:
        socket.getaddrinfo(urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        return False
    return True
