"""One file per kind of equipment: each implements a capability of `drivers.hal.capabilities` over a wire."""
