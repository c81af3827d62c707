"""The blocks of a network that methods learn one after another."""
