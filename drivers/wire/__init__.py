"""How equipment looks on a wire and how bytes, process variables and messages travel."""
