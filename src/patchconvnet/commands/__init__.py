"""One module a command, each with a typed function: its signature is the options, its docstring the help."""
