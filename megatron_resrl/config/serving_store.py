"""Where trainers and nodes that only generate find each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from megatron_resrl.errors import InputError

STORE_VARIABLE = "MEGATRON_RESRL_STORE"
"""Environment variable `host:port`: rank 0 opens a store there for `megatron-resrl serve`."""


class StoreAddress(NamedTuple):
    """Host of rank 0, and a port of its own."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def store_address(environment: Mapping[str, str]) -> StoreAddress:
    """The address in `MEGATRON_RESRL_STORE`.

    Raises:
        InputError: The variable is not set, or is no `host:port`.
    """
    given = environment.get(STORE_VARIABLE, "")
    host, colon, port = given.rpartition(":")
    if not given:
        raise InputError(
            f"{STORE_VARIABLE} is not set, and vllm.nodes needs it on trainers and on nodes for "
            "rollouts; set it to the host of rank 0 and a free port, e.g. node01:29600 "
            "(`megatron-resrl launch` does)"
        )
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(
            f"{STORE_VARIABLE} = {given!r}: not host:port; give the host of rank 0 and a free "
            "port, e.g. node01:29600"
        )
    return StoreAddress(host.strip("[]"), int(port))
