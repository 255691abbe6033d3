"""Hardware in the loop: a conformance procedure against one attached device, and the report of what it measured."""
