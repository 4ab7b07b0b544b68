"""One file a command: ``run(cfg)`` wires the parts together."""
