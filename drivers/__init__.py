"""The hardware abstraction layer: vocabulary (`hal`), wire formats and transports (`wire`), devices (`devices`)."""
