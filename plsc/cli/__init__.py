"""The command line: settings become flags, and a module holds each group of commands."""
