"""Which task is a prompt from? What methods have in common whose adapters can tell."""
