"""The command line ``awq-edge``: one module per command, one for printing, one for error text."""
