"""What the schedule relies on in megatron-core."""

from __future__ import annotations

import inspect

from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from megatron_resrl.policy.schedule import _KnownShapes


def test_known_shapes_replace_what_megatron_core_asks_for() -> None:
    # Under another name the shapes would be sent again, without an error.
    theirs = inspect.signature(P2PCommunicator._communicate_shapes)
    assert list(theirs.parameters) == list(
        inspect.signature(_KnownShapes._communicate_shapes).parameters
    )
    assert "self._communicate_shapes(" in inspect.getsource(P2PCommunicator._communicate)
