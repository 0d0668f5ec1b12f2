"""The commands: each composes what the other rooms give, and runs it."""
