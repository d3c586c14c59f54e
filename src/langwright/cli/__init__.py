"""The command line: verbs that parse, call the layers below, print and exit."""
