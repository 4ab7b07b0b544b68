"""The command line: argv to a checked configuration, without torch."""
