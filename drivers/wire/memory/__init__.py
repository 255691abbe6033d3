"""Memory twins of the three transports: the same promises, in virtual time, with latency, losses and cuts on demand.

The promises are written in docs/wire-semantics.md and tested by one suite on the twins and on the real transports.
"""

from drivers.wire.memory.channels import MemoryChannels, VariableTable
from drivers.wire.memory.messages import MemoryBroker, MemoryMessages
from drivers.wire.memory.stream import LATENCY_S, MemoryLine, MemoryStream, memory_stream_pair

__all__ = [
    "LATENCY_S",
    "MemoryBroker",
    "MemoryChannels",
    "MemoryLine",
    "MemoryMessages",
    "MemoryStream",
    "VariableTable",
    "memory_stream_pair",
]
